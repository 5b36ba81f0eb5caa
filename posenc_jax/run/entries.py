"""What a checkpoint says of itself beside its arrays: step, config and fingerprints of the arrays,
with a digest of it all.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from posenc_jax.core.registry import quoted
from posenc_jax.run import config as configs
from posenc_jax.run.json_file import listed

DIGEST = 'digest'
_SINCE = ('step', 'config', 'metrics')  # entries that came with the digest


def digest(found: Any) -> str:
    """Of a JSON value, whatever the order of its names.

    Example:
      >>> digest({'a': 1, 'b': (2,)}) == digest({'b': [2], 'a': 1})
      True
    """
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def sealed(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries with their digest."""
    return {**entries, DIGEST: digest(entries)}


def unsealed(found: Any) -> dict[str, Any]:
    """The entries of a checkpoint; those of versions that wrote no digest are taken as they are.

    Raises:
      ValueError: they are damaged.

    Example:
      >>> unsealed(sealed({'step': 3, 'iterator': {}}))
      {'step': 3, 'iterator': {}}
    """
    if not isinstance(found, dict):
        raise ValueError(f'its entries are {quoted(found)}, expected an object')
    entries = {name: value for name, value in found.items() if name != DIGEST}
    if found.get(DIGEST, '') != digest(entries) and (
        DIGEST in found or any(name in entries for name in _SINCE)
    ):
        raise ValueError('its entries differ from those that were saved')
    return entries


def other_config(entries: Mapping[str, Any], saved: configs.Saved) -> str:
    """The fields in which a config differs from that of a checkpoint; '' for none, and where the
    checkpoint says no config.
    """
    if 'config' not in entries:
        return ''
    trained = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in entries['config'].items()
    }
    changed = configs.changes(trained, saved.bound)
    return listed(
        [
            f'{name} is {quoted(then)} there and {quoted(now)} here'
            for name, (then, now) in changed.items()
        ]
    )


@jax.jit
def fingerprint(tree: Any) -> UInt32[Array, '']:
    """A sum of the bits of all arrays modulo 2**32, equal however they are sharded; one changed bit
    changes it.

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
