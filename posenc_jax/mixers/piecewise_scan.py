"""Scans over long sequences in pieces of one size, and the blocks and documents of a piece."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.protocol.tokens import Tokens


def scan_pieces(
    step: Callable[[Any, Any], tuple[Any, Array]], state: Any, rows: Any, size: int
) -> tuple[Array, Any]:
    """The results of `state, y = step(state, piece)` for pieces of `size` tokens, joined. The last
    piece has what is left.

    The backward pass keeps the states between the pieces and computes the rest again, so memory is
    linear in the length.

    Args:
      step: one piece.
      state: before the first piece.
      rows: pytree of arrays [B, T, ...].
      size: tokens of a piece.

    Returns:
      The joined y, [B, T, ...], and the last state.
    """
    length = jax.tree.leaves(rows)[0].shape[1]
    if length <= size:
        state, y = step(state, rows)
        return y, state
    count, rest = divmod(length, size)

    def cut(a):
        a = a[:, : length - rest]
        return jnp.moveaxis(a.reshape(a.shape[0], count, size, *a.shape[2:]), 1, 0)

    state, y = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), state, jax.tree.map(cut, rows))
    y = jnp.moveaxis(y, 0, 1)
    y = y.reshape(y.shape[0], length - rest, *y.shape[3:])
    if rest:
        state, last = step(state, jax.tree.map(lambda a: a[:, length - rest :], rows))
        y = jnp.concatenate([y, last], axis=1)
    return y, state


def known_rows(
    x: Float[Array, 'B T D'], tok: Tokens, starts: Bool[Array, '#B T']
) -> tuple[Bool[Array, 'B T'], Int[Array, 'B T'], Bool[Array, 'B T']]:
    """Which tokens are valid, their ranks, and where documents start, for every row of a batch."""
    of_row = lambda a: jnp.broadcast_to(a, x.shape[:2])
    valid = jnp.ones((1, 1), bool) if tok.valid is None else tok.valid
    return of_row(valid), of_row(jnp.asarray(tok.rank)), of_row(starts)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """Where the tokens of a piece lie in blocks of one size, which each document starts anew.

    A state that holds one block holds that of the last token before the piece, and `held` of its
    places are filled. All this follows from the ranks.

    Attributes:
      valid, rank: of the tokens.
      document: how many documents have started in the piece; those of the state are 0.
      block: rank // size.
      state_block, held: number of the block in the state, and how many tokens of it there are.
      last_document, last_block: of the last valid token; those of the state where there is none.
    """

    valid: Bool[Array, 'B T']
    rank: Int[Array, 'B T']
    document: Int[Array, 'B T']
    block: Int[Array, 'B T']
    state_block: Int[Array, 'B']
    held: Int[Array, 'B']
    last_document: Int[Array, 'B']
    last_block: Int[Array, 'B']

    @classmethod
    def of(
        cls,
        valid: Bool[Array, 'B T'],
        rank: Int[Array, 'B T'],
        starts: Bool[Array, 'B T'],
        size: int,
    ) -> 'Blocks':
        """The blocks of a piece.

        Example:
          >>> valid = jnp.ones((1, 3), bool)
          >>> piece = Blocks.of(valid, jnp.array([[5, 6, 7]]), ~valid, 4)
          >>> piece.state_block.tolist(), piece.held.tolist(), piece.last_block.tolist()
          ([1], [1], [1])
        """
        document, block = jnp.cumsum(starts, axis=1, dtype=jnp.int32), rank // size
        at = lambda a, place: jnp.take_along_axis(a, place[:, None], axis=1)[:, 0]
        some = valid.any(axis=1)
        first = jnp.argmax(valid, axis=1)
        last = valid.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)
        before = at(rank, first)  # so many tokens of the document came before
        state_block = jnp.maximum(before - 1, 0) // size
        return cls(
            valid,
            rank,
            document,
            block,
            state_block,
            before - state_block * size,
            jnp.where(some, at(document, last), 0),
            jnp.where(some, at(block, last), state_block),
        )

    @property
    def old(self) -> Bool[Array, 'B T']:
        """Whether a token belongs to the document of the state."""
        return self.document == 0

    @property
    def last(self) -> Bool[Array, 'B T']:
        """Whether a valid token belongs to the last document and its last block."""
        return (
            self.valid
            & (self.document == self.last_document[:, None])
            & (self.block == self.last_block[:, None])
        )

    def sees(self, size: int) -> tuple[Bool[Array, 'B T size'], Bool[Array, 'B T T']]:
        """Which places of the block in the state, and which tokens of the piece, a token sees in
        its own block.
        """
        same_block = self.old & (self.block == self.state_block[:, None])
        filled = jnp.arange(size) < self.held[:, None]
        pairs = lambda a: a[:, :, None] == a[:, None, :]
        place = jnp.arange(self.valid.shape[1])
        within = pairs(self.document) & pairs(self.block) & (place[:, None] >= place)
        return same_block[..., None] & filled[:, None], within & self.valid[:, None]

    def store(self, buffer: Array, rows: Array) -> Array:
        """`buffer` [B, size, ...] with the rows [B, T, ...] of the last block at their places, and
        zero where no token of that block is.
        """
        size = buffer.shape[1]
        same = (self.last_document == 0) & (self.last_block == self.state_block)
        kept = same[:, None] & (jnp.arange(size) < self.held[:, None])
        kept |= ~self.valid.any(axis=1, keepdims=True)  # padding says nothing about the state
        buffer = jnp.where(kept.reshape(*kept.shape, *[1] * (buffer.ndim - 2)), buffer, 0)
        place = jnp.where(self.last, self.rank % size, size)
        put = lambda buffer, place, rows: buffer.at[place].set(rows, mode='drop')
        return jax.vmap(put)(buffer, place, rows)
