"""What mixers with a state share: long sequences in pieces of one size, documents, projections."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.core.tokens import Tokens
from posenc_jax.model.layers import linear


def scan_pieces(
    step: Callable[[Any, Any], tuple[Any, Array]], state: Any, rows: Any, size: int
) -> tuple[Array, Any]:
    """The results of `state, y = step(state, piece)` for pieces of at most `size` tokens, joined.

    The last piece is filled up with zeros and False, which a step must read as padding. The
    backward pass keeps the states between the pieces and computes the rest again, so memory is
    linear in the length.

    Args:
      step: one piece.
      state: before the first piece.
      rows: pytree of arrays [B, T, ...].
      size: tokens of a piece.

    Returns:
      The joined y, [B, T, ...], and the last state.

    Example:
      >>> total = lambda state, x: (state + x.sum(), jnp.cumsum(x, axis=1) + state)
      >>> y, last = scan_pieces(total, jnp.float32(0), jnp.ones((1, 5)), 2)
      >>> y.tolist(), float(last)
      ([[1.0, 2.0, 3.0, 4.0, 5.0]], 5.0)
    """
    length = jax.tree.leaves(rows)[0].shape[1]
    if length <= size:
        state, y = step(state, rows)
        return y, state
    count = -(-length // size)

    def cut(a):
        a = jnp.pad(a, [(0, 0), (0, count * size - length), *[(0, 0)] * (a.ndim - 2)])
        return jnp.moveaxis(a.reshape(a.shape[0], count, size, *a.shape[2:]), 1, 0)

    state, y = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), state, jax.tree.map(cut, rows))
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(y.shape[0], count * size, *y.shape[3:])[:, :length], state


def known_rows(
    x: Float[Array, 'B T D'], tok: Tokens, starts: Bool[Array, '#B T']
) -> tuple[Bool[Array, 'B T'], Int[Array, 'B T'], Bool[Array, 'B T']]:
    """Which tokens are valid, their ranks, and where documents start, for every row of a batch.

    Example:
      >>> x, tok = jnp.zeros((2, 3, 1)), Tokens.of(length=3)
      >>> known_rows(x, tok, jnp.zeros((1, 3), bool))[1].tolist()
      [[0, 1, 2], [0, 1, 2]]
    """
    of_row = lambda a: jnp.broadcast_to(a, x.shape[:2])
    valid = jnp.ones((1, 1), bool) if tok.valid is None else tok.valid
    return of_row(valid), of_row(jnp.asarray(tok.rank)), of_row(starts)


def to_heads(x: Float[Array, 'B T D'], w: Float[Array, 'D H F']) -> Float[Array, 'B T H F']:
    """`x w` for each head, in the dtype of `x`."""
    return linear(x, w.reshape(w.shape[0], -1)).reshape(*x.shape[:2], *w.shape[1:])


def from_heads(x: Float[Array, 'B T H F'], w: Float[Array, 'H F D']) -> Float[Array, 'B T D']:
    """The sum of `x w` over the heads, in the dtype of `x`."""
    return linear(x.reshape(*x.shape[:2], -1), w.reshape(-1, w.shape[-1]))
