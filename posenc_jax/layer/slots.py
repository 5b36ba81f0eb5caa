"""The slots of a decode cache: what is in them from a cursor on, and what lies beyond the last one.

A program with a traced cursor cannot refuse tokens that do not fit. Their results are NaN, and the
results of the tokens that fit are right. A single token beyond the capacity overwrites the last
slot, so the slots of a cache that has overflowed are of no use; all later results are NaN.
"""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from posenc_jax.protocol.tokens import Tokens


def known_to_fit(cursor, count: int, capacity: int) -> bool:
    """Whether it is known that `count` tokens from the cursor on lie within the capacity; it is not
    where the cursor is traced.
    """
    return not isinstance(cursor, Tracer) and int(cursor) + count <= capacity


def beyond_as_nan(y: Float[Array, 'B T D'], cursor, capacity: int) -> Float[Array, 'B T D']:
    """The results of T tokens from the cursor on, with NaN for those beyond the capacity, which
    cannot be refused where the cursor is traced.

    Example:
      >>> jax.jit(beyond_as_nan, static_argnums=2)(jnp.zeros((1, 3, 1)), 2, 4).ravel().tolist()
      [0.0, 0.0, nan]
    """
    if known_to_fit(cursor, y.shape[1], capacity):
        return y
    fits = cursor + jnp.arange(y.shape[1]) < capacity
    return jnp.where(fits[:, None], y, jnp.nan)


def at(tok: Tokens, cursor, count: int) -> Tokens:
    """The tokens of `count` slots from the cursor on. Of several, those beyond the capacity equal
    the last one, and the others keep their places; `Tokens.slice` would move the whole block.

    Example:
      >>> jax.jit(at, static_argnums=2)(Tokens.of(length=4), 2, 3).pos.tolist()
      [[2, 3, 3]]
    """
    if count > 1 and not known_to_fit(cursor, count, tok.length):
        behind = lambda a: [(0, count if axis == 1 else 0) for axis in range(a.ndim)]
        tok = jax.tree.map(lambda a: jnp.pad(a, behind(a), mode='edge'), tok)
    return tok.slice(cursor, count)


def told(tok: Tokens, cursor, new: Tokens) -> Tokens:
    """The tokens of the whole capacity, with `valid` and `segment` of new ones from the cursor on.

    Tokens behind them are real until a later step says otherwise. They continue the document of the
    last real token, and so does the padding between.

    Args:
      tok: the tokens as the steps before told them, without positions of their own.
      cursor: the slot of the first new token.
      new: the new tokens, valid where they are not known to be padding.

    Example:
      >>> tok = told(Tokens.of(length=5), 1, Tokens.of(segment=[[0, 7]], valid=[[True, False]]))
      >>> tok.segment.tolist(), tok.rank.tolist()
      ([[0, 0, 0, 0, 0]], [[0, 1, 1, 2, 3]])
    """
    slots, count = jnp.arange(tok.length), new.length
    here = (slots >= cursor) & (slots < cursor + count)

    def merged(known, given, default):
        if given is None:
            return known
        known = jnp.full((1, tok.length), default) if known is None else known
        return jnp.where(here, given[:, jnp.clip(slots - cursor, 0, count - 1)], known)

    valid = merged(tok.valid, new.valid, True)
    segment = merged(tok.segment, new.segment, 0)
    if segment is not None:
        real = (slots < cursor + count) & (True if valid is None else valid)
        last = jax.lax.cummax(jnp.where(real, slots, jnp.full_like(segment, -1)), axis=1)
        segment = jnp.take_along_axis(segment, jnp.where(last < 0, slots, last), axis=1)
    return Tokens.of(length=tok.length, valid=valid, segment=segment)


def written(buffer: Array, a: Array, cursor, axis: int) -> Array:
    """`buffer` with `a` in its slots from the cursor on. Of several tokens, those beyond the last
    slot are left out.

    Example:
      >>> jax.jit(written, static_argnums=3)(jnp.arange(4), jnp.array([7, 8, 9]), 2, 0).tolist()
      [0, 1, 7, 8]
    """
    a, count, capacity = a.astype(buffer.dtype), a.shape[axis], buffer.shape[axis]
    if count > 1 and not known_to_fit(cursor, count, capacity):
        # JAX moves a block back that reaches beyond the end. What it then covers in front of the
        # cursor is written as it was.
        over = jnp.clip(cursor + count - capacity, 0, count)
        cut = lambda a, start: jax.lax.dynamic_slice_in_dim(a, start, count, axis)
        old, moved = cut(buffer, cursor), cut(jnp.concatenate([a, a], axis), count - over)
        new = (jnp.arange(count) >= over).reshape(-1, *[1] * (a.ndim - axis - 1))
        a = jnp.where(new, moved, old)
    return jax.lax.dynamic_update_slice_in_dim(buffer, a, cursor, axis)
