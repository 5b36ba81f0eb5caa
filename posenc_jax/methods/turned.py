"""The base classes of encodings that turn queries and keys by positions with components."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from posenc_jax.protocol.composite import name_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.families import check_head_dim
from posenc_jax.protocol.grids import grid_size, on_grid
from posenc_jax.protocol.tokens import Tokens


class Turned(Encoding):
    """Base class: turns queries and keys alike. A subclass defines `turned`.

    Attributes:
      components: P; positions are [B, L, P], for P = 1 also [B, L].
      head_dim: H.
    """

    traits: ClassVar = frozenset({'rotates'})
    components: int
    head_dim: int

    def turned(self, x: Num[Array, 'B L heads H'], tok: Tokens) -> Num[Array, 'B L heads H']:
        """Queries or keys as the positions of their tokens turn them, in the dtype of `x`."""
        raise NotImplementedError

    def positions(self, tok: Tokens) -> Num[Array, '#B L P']:
        """The positions of tokens.

        Raises:
          ValueError: positions with another number of components.
        """
        pos = tok.pos[..., None] if tok.pos.ndim == 2 else tok.pos
        if pos.shape[2:] != (self.components,):
            raise ValueError(
                f'{name_of(self)} needs positions [B, L, {self.components}], got {tok.pos.shape}; '
                'give them by Tokens.of(positions=...)'
            )
        return pos

    def check_widths(self, *vectors: Num[Array, 'B L _ H']) -> None:
        """Refuses vectors of another width than H."""
        for x in vectors:
            check_head_dim(name_of(self), self.head_dim, x)

    def project(self, q, k, v, tq, tk, x=None):
        self.check_widths(q, k)
        return self.turned(q, tq), self.turned(k, tk), v, tq, tk


class NormalisedGrid(Turned):
    """Base class: `place` gives the cells of a grid coordinates that depend on its size, and all
    other tokens the origin. A subclass defines `coordinates`, and turns nothing at the origin.

    Attributes:
      size: the number of cells along each axis of the grid on which the tokens stand. None takes
        the largest position of the valid tokens of a row, or of a packed document, plus one.
    """

    size: tuple[int, ...] | None

    @property
    def traits(self):
        return frozenset({'rotates'} if self.size else {'rotates', 'moves_positions'})

    def coordinates(
        self, cells: Float[Array, '#B L P'], size: Float[Array, '#B #L P'], key: Array | None
    ) -> Float[Array, '#B L P']:
        """The coordinates of cells; only with a `key` they may be random."""
        raise NotImplementedError

    def place(self, tok, *, key=None):
        pos = self.positions(tok)
        size = grid_size(tok) if self.size is None else jnp.array(self.size)[None, None]
        cells, size = pos.astype(jnp.float32), size.astype(jnp.float32)
        placed = jnp.where(on_grid(pos)[..., None], self.coordinates(cells, size, key), 0.0)
        return dataclasses.replace(tok, pos=placed)

    def positions(self, tok):
        if tok.pos.ndim == 2:
            raise ValueError(
                f'{name_of(self)} needs positions [B, L, {self.components}], got {tok.pos.shape}; '
                'give them by Tokens.of(positions=...)'
            )
        return super().positions(tok)

    def placed(self, tok: Tokens) -> Float[Array, '#B L P']:
        """The coordinates that `place` has given.

        Raises:
          ValueError: the positions are still whole numbers.
        """
        if jnp.issubdtype(tok.pos.dtype, jnp.integer):
            raise ValueError(
                f'{name_of(self)} turns by the coordinates that its `place` gives, got integer '
                'positions; call tok = encoding.place(tok) before'
            )
        return self.positions(tok)


def has_place(pos: Num[Array, '#B L P']) -> Bool[Array, '#B L']:
    """Which tokens have a position. A token in front of a grid has none: its components are whole
    numbers, several, and negative alone. Fractional ones are coordinates of points, of any sign.

    Example:
      >>> has_place(jnp.array([[[-1, -1], [0, 0], [-1, 2]]])).tolist()
      [[False, True, True]]
    """
    if pos.shape[-1] > 1 and jnp.issubdtype(pos.dtype, jnp.integer):
        return on_grid(pos)
    return jnp.ones(pos.shape[:2], bool)


def for_heads(angles: Float[Array, '#B L K F'], heads: int) -> Float[Array, '#B L heads F']:
    """Angles of key heads, for the query heads that share them."""
    return jnp.repeat(angles, heads // angles.shape[2], axis=2)


def moved_by(
    x: Float[Array, 'B L heads H'], u: Float[Array, 'K H H'], *, transposed: bool = False
) -> Float[Array, 'B L heads H']:
    """`U x` with the matrix of each key head, for the query heads that share it; float32.

    Args:
      u: a matrix for each key head.
      transposed: multiply by the transposed matrices.
    """
    grouped = x.astype(jnp.float32).reshape(*x.shape[:2], u.shape[0], -1, x.shape[-1])
    rule = 'blkgj,kji->blkgi' if transposed else 'blkgj,kij->blkgi'
    return jnp.einsum(rule, grouped, u, precision='highest').reshape(x.shape)
