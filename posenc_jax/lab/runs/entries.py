"""The entries of a checkpoint beside its arrays: step, config and fingerprints of the arrays, with
a digest of the entries.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from posenc_jax.lab.files.json_file import listed
from posenc_jax.lab.runs import stored
from posenc_jax.protocol.errors import quoted

DIGEST = 'digest'
_SINCE = ('step', 'config', 'metrics')  # entries that were introduced together with the digest
_KINDS = {'iterator': dict, 'fingerprints': dict, 'step': int, 'config': dict}


def digest(found: Any) -> str:
    """The SHA-256 of a JSON value, in hexadecimal; the order of names does not matter.

    Example:
      >>> digest({'a': 1, 'b': (2,)}) == digest({'b': [2], 'a': 1})
      True
    """
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def sealed(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Adds their digest to the entries."""
    return {**entries, DIGEST: digest(entries)}


def unsealed(found: Any) -> dict[str, Any]:
    """The entries of a checkpoint, without their digest. Entries of versions that wrote no digest
    are returned unchecked.

    Raises:
      ValueError: the entries are not an object, do not match their digest, or one of them is of
        another kind than `sealed` got.
    """
    if not isinstance(found, dict):
        raise ValueError(f'its entries are {quoted(found)}, expected an object')
    entries = {name: value for name, value in found.items() if name != DIGEST}
    if found.get(DIGEST, '') != digest(entries) and (
        DIGEST in found or any(name in entries for name in _SINCE)
    ):
        raise ValueError('its entries differ from those that were saved')
    _check_kinds(entries)
    return entries


def _check_kinds(entries: dict[str, Any]) -> None:
    """Anybody can write entries with the digest that belongs to them."""
    for name, value in entries.items():
        if type(value) is not _KINDS.get(name, type(value)):
            raise ValueError(f'its entry {quoted(name)} is {quoted(value)}')
    if type(place := entries.get('iterator', {}).get('next_index', 0)) is not int:
        raise ValueError(f'its place in the data is {quoted(place)}, expected a whole number')
    written = entries.get('metrics')
    kinds = {'lines': int, 'digest': str}
    if written is not None and (
        not isinstance(written, dict) or {n: type(v) for n, v in written.items()} != kinds
    ):
        raise ValueError(f"its entry 'metrics' is {quoted(written)}")


def other_config(entries: Mapping[str, Any], saved: stored.Saved) -> str:
    """A line with the fields in which the config of a checkpoint differs from `saved`; '' if none
    differs or the checkpoint has no config.
    """
    if 'config' not in entries:
        return ''
    trained = {name: _with_tuples(value) for name, value in entries['config'].items()}
    changed = stored.changes(trained, saved.bound)
    return listed(
        [
            f'{name} is {quoted(then)} in the checkpoint and {quoted(now)} now'
            for name, (then, now) in changed.items()
        ]
    )


def _with_tuples(value: Any) -> Any:
    """A value of JSON with tuples in the place of lists, on every level."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


@jax.jit
def fingerprint(tree: Any) -> UInt32[Array, '']:
    """A weighted sum of the bits of all arrays, modulo 2**32. It does not depend on how the arrays
    are sharded, and a single changed bit changes it.

    Example:
      >>> int(fingerprint({'a': jnp.array([1, 2], jnp.int32)}))
      3
    """
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{8 * leaf.dtype.itemsize}'))
        total += jnp.uint32(2 * number + 1) * bits.sum(dtype=jnp.uint32)
    return total
