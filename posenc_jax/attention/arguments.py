"""Checks of the arguments of `attend`: shapes, doors that were skipped, the index of queries."""

import contextlib
from collections.abc import Collection, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from posenc_jax.protocol.composite import name_of, owner_of, parts_of
from posenc_jax.protocol.encoding import TOKEN_STAGE, Encoding
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.tokens import Tokens

# What an encoding says of itself that reads the whole text in a door.
_READS_ALL = {
    'place': {'reads_other_tokens', 'moves_positions', 'reads_ids'},
    'project': {'reads_other_tokens', 'follows_length'},
    'embed': {'moves_positions'},
}
_CALLS = {
    'place': 'tok = encoding.place(tok) on the tokens',
    'embed': 'x = encoding.embed(x, tok) on the token vectors',
    'qkv': 'q, k, v = encoding.qkv(x, linear, tok) on the layer input, and encoding.merge(out) on '
    'the result of attend',
    'project': 'q, k, v, tq, tk = encoding.project(q, k, v, tq, tk, x) on queries and keys',
}


def check_arrays(q, k, v, tq: Tokens, tk: Tokens, s_axis: int) -> None:
    """Refuses arrays whose shapes or dtypes do not fit together. The keys lie along `s_axis`."""
    for name, a in (('q', q), ('k', k), ('v', v)):
        if a.ndim != 4 or not jnp.issubdtype(a.dtype, jnp.floating):
            raise ValueError(
                f'attend: {name} must be floats with four axes, got {a.dtype} {a.shape}'
            )
    (batch, queries, heads, width), keys, kv_heads = q.shape, k.shape[s_axis], k.shape[3 - s_axis]
    if v.shape[:-1] != k.shape[:-1] or k.shape[0] != batch or k.shape[-1] != width:
        raise ValueError(
            f'attend: shapes do not fit: q {q.shape}, k {k.shape}, v {v.shape} '
            f'(heads_first={s_axis == 2})'
        )
    if heads % kv_heads:
        raise ValueError(f'attend: {heads} query heads are not a multiple of {kv_heads} key heads')
    if tq.length != queries or tk.length != keys:
        raise ValueError(
            f'attend: tokens of length {tq.length}, {tk.length} for {queries} queries, {keys} keys'
        )
    for name, tok in (('tq', tq), ('tk', tk)):
        for leaf in jax.tree.leaves(tok):
            if leaf.shape[0] not in (1, batch):
                raise ValueError(f'attend: {name} has {leaf.shape[0]} rows, queries have {batch}')


def check_doors(encoding: Encoding, applied: Collection[str]) -> None:
    """Refuses an encoding that opens a door of the token stage that was not called."""
    for door in applied:
        check_choice('applied', door, TOKEN_STAGE)
    for door in TOKEN_STAGE:
        if door not in applied and encoding.opens(door):
            part = next(part for part in parts_of(encoding) if part.opens(door))
            raise ValueError(
                f'attend: {name_of(part)} acts in {door!r}, a door that attend does not call. '
                f'First call {_CALLS[door]}, then pass applied=({door!r}, ...). pj.Attention calls '
                'every door'
            )


@contextlib.contextmanager
def missing_features(encoding: Encoding) -> Iterator[None]:
    """In this scope a missing feature of tokens is an error that names the part that attaches it.

    It is missing where `applied` lists a door that was not called.
    """
    try:
        yield
    except KeyError as error:
        name = str(error.args[0])
        part = next((part for part in parts_of(encoding) if name.startswith(name_of(part))), None)
        if part is None:
            raise
        doors = [repr(door) for door in TOKEN_STAGE if part.opens(door)]
        raise ValueError(
            f'attend: the tokens lack the feature {name!r} of {name_of(part)}, which acts in '
            f'{", ".join(doors)}: `applied` lists a door that was not called on these tokens'
        ) from error


def check_axis(encoding: Encoding, axis_name: str | None, applied_outside: bool) -> None:
    """Refuses a mesh axis along which nothing is cut here, an encoding that no ring can serve, and
    one with a door that would have taken the part of a device for the whole text.

    Raises:
      ValueError: no `jax.shard_map` around this call has the axis; logits that read all keys of a
        query; a door reads the whole text and may have been called inside.
    """
    if axis_name is None:
        return
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f'attend: axis_name={axis_name!r} is an axis of no jax.shard_map around this call; '
            'leave it out, or call it inside of one'
        ) from None
    if 'mixes_logits' in encoding.traits:
        raise ValueError(
            f'attend: {owner_of("mixes_logits", encoding)} reads all keys of a query at once, and '
            f'along {axis_name!r} a device has a part of them; give all keys to every device'
        )
    # Parts of a text look like a text while a program is traced, so the caller has to say it.
    for part in () if applied_outside else parts_of(encoding):
        for door, traits in _READS_ALL.items():
            if part.opens(door) and part.traits & traits:
                raise ValueError(
                    f'attend: {part} reads the whole text in `{door}`, and inside of '
                    f'jax.shard_map it gets the part of one device along {axis_name!r}. Call '
                    f'{door} outside, where the text is whole, and pass applied_outside=True; or '
                    'use a model with mesh.sequence'
                )


def check_offset(encoding: Encoding, tq: Tokens, tk: Tokens) -> None:
    """Refuses causal queries whose index says that they are the first tokens though they are not.

    They are not if they have other positions than the first keys, or if a single query without
    positions of its own stands before several keys. Only what is known while the program is traced
    can be checked.
    """
    if 'decides_causality' not in encoding.traits or 'sees_later' in encoding.traits:
        return
    given = [tq.index, tk.index] + ([] if tk.valid is None else [tk.valid])
    if tq is tk or any(isinstance(a, Tracer) for a in given):
        return
    first, first_key, *valid = map(np.asarray, given)
    if (first[:, 0] > first_key[:, 0]).all():
        return
    count = min(tq.length, tk.length)
    aligned = (first[:, :count] == first_key[:, :count]).all()
    if aligned and not any(isinstance(a, Tracer) for a in (tq.pos, tk.pos)):
        differ = np.asarray(tq.pos)[:, :count] != np.asarray(tk.pos)[:, :count]
        differ = differ.reshape(*differ.shape[:2], -1).any(-1)
        if (differ & valid[0][:, :count] if valid else differ).any():
            _refuse_offset(tq, tk, 'have other positions than')
        if tq.length > 1:
            return
    keys = valid[0].sum(1) if valid else np.array([tk.length])
    if ((first[:, 0] <= first_key[:, 0]) & (keys > tq.length)).any():
        _refuse_offset(tq, tk, 'are fewer than')


def _refuse_offset(tq: Tokens, tk: Tokens, how: str):
    raise ValueError(
        f'attend: {tq.length} queries have the index of the first of {tk.length} causal keys, and '
        f'{how} the keys; say which tokens they are by tk.slice(start, {tq.length}) or '
        'Tokens.of(index=...)'
    )
