"""Fixed sinusoidal positions of a grid, in two conventions."""

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from posenc_jax.base.phases import phase
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.errors import check_number
from posenc_jax.protocol.families import Embedding
from posenc_jax.protocol.grids import ANY_SIZE, check_grid, check_size, grid_size, on_grid
from posenc_jax.protocol.registry import Card, register

Style = Literal['plain', 'detr']


def sincos2d_table(
    pos: Num[Array, '#B L 2'], width: int, base: float = 10000.0
) -> Float[Array, '#B L D']:
    """`[sin(r w) | cos(r w) | sin(c w) | cos(c w)]`, `w_k = base^(-4k/D)`, float32.

    Tokens that are not on the grid get zeros.

    Args:
      pos: (row, column).
      width: D, a multiple of 4.
      base: of the frequencies.

    Raises:
      ValueError: another width, positions that are not [B, L, 2], a base that is not above 1.
    """
    check_grid('sincos2d', pos)
    _check(width, base)
    angle = phase(pos, base ** (-4.0 * np.arange(width // 4) / width))
    code = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    code = code.reshape(*pos.shape[:2], width)
    return jnp.where(on_grid(pos)[..., None], code, 0.0)


def sincos2d_detr(
    pos: Num[Array, '#B L 2'],
    width: int,
    size: tuple[int, int] | Int[Array, '#B L 2'],
    base: float = 10000.0,
) -> Float[Array, '#B L D']:
    """The convention of DETR, float32; zeros for tokens that are not on the grid.

    Feature i of an axis, f = D/2 of them, is the sine (even i) or the cosine (odd i) of
    `y base^(-2 floor(i/2) / f)`, `y = 2 pi (p + 1) / (n + 1e-6)` for place p of n; the features of
    the row come first.

    Args:
      pos: (row, column).
      width: D, a multiple of 4.
      size: n of rows and of columns, one pair or one for each token.
      base: of the frequencies.

    Raises:
      ValueError: as `sincos2d_table`.
    """
    check_grid('sincos2d', pos)
    _check(width, base)
    sizes = jnp.asarray(size, jnp.float32)
    turns = (pos.astype(jnp.float32) + 1) / (sizes + 1e-6)
    theta = 2 * math.pi * base ** (-4.0 * np.arange(width // 4) / width)
    # At most one turn, so the product has the precision of float32 itself.
    angle = turns[..., None] * theta.astype(np.float32)
    code = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*pos.shape[:2], width)
    return jnp.where(on_grid(pos)[..., None], code, 0.0)


def _check(width, base):
    if width < 4 or width % 4:
        raise ValueError(
            f'sincos2d needs a width that is a positive multiple of 4, got {width}; the nearest is '
            f'{max(4, round(width / 4) * 4)}'
        )
    check_number('sincos2d base', base, above=1)


@register(
    'sincos2d',
    kind='encoding',
    card=Card(
        name='2-D sinusoidal positions',
        example='sincos2d()',
        use_when=(
            'You train a plain vision transformer on images of one size and want '
            'positions without parameters.'
        ),
        share='model',
    ),
)
class Sincos2d(Embedding):
    """Adds sines and cosines of the row and of the column to the token vectors.

    `x + [sin(r w) | cos(r w) | sin(c w) | cos(c w)]`, `w_k = base^(-4k/D)`. That is 'plain'; larger
    grids extend it. 'detr': sines and cosines alternate, and rows and columns are divided by the
    size of the grid, so that they lie in (0, 2 pi] in every grid, see `sincos2d_detr`. Positions
    are (row, column); a token that is not on the grid, such as a class token at (-1, -1), gets
    zeros, and so does padding. Differs from the paper: the row has the first half of the features;
    the released code gives it to the column.

    Args:
      style: 'plain' or 'detr'.
      base: 1 / base is about the lowest frequency.
      rows, columns: size of the grid, of 'detr' alone. None takes the largest row and column of the
        valid tokens of a sequence, or of a packed document, plus one. A new token then changes the
        vectors of all others, so no decode cache can serve it.

    Raises:
      ValueError: a base that is not above 1, a size for 'plain', half a size; at call, positions
        that are not [B, L, 2] (for a size of None: integers), a position beyond the size where it
        is known, or a width that is no multiple of 4.

    Reference: He, Chen, Xie, Li, Dollar, Girshick, arXiv 2111.06377; Carion et al., arXiv
    2005.12872.

    Example:
      >>> import posenc_jax as pj
      >>> grid = pj.Tokens.of(positions=[[[-1, -1], [0, 0], [0, 1]]])
      >>> pj.make('sincos2d()').embed(jnp.zeros((1, 3, 4)), grid)[0, 1].tolist()
      [0.0, 1.0, 0.0, 1.0]
    """

    components = 2

    @property
    def traits(self):
        return frozenset({'moves_positions'} if self.style == 'detr' and not self.size else ())

    def __init__(
        self,
        style: Style = 'plain',
        base: float = 10000.0,
        rows: Size | None = None,
        columns: Size | None = None,
    ):
        _check(4, base)
        self.style: Style = style
        self.base = base
        self.size = check_size('sincos2d', rows, columns)
        if style == 'plain' and self.size:
            raise ValueError(
                "sincos2d rows and columns are of style='detr' alone; 'plain' needs no size"
            )

    def table(self, tok, width):
        if self.style == 'plain':
            return sincos2d_table(tok.pos, width, self.base)
        check_grid(
            'sincos2d',
            tok.pos,
            whole=self.size is None,
            within=self.size or ANY_SIZE,
            valid=tok.valid,
        )
        size = grid_size(tok) if self.size is None else self.size
        return sincos2d_detr(tok.pos, width, size, self.base)
