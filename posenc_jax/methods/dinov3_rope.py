"""The rotary encoding of DINOv3: coordinates between -1 and 1, which training shifts and scales."""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import TWO_PI, phase
from posenc_jax.methods.rope import rotate
from posenc_jax.methods.turned import NormalisedGrid
from posenc_jax.protocol.bounds import CONTEXT, Base, Ge, Multiple, Positive, Size
from posenc_jax.protocol.registry import Card, register

Normalise = Literal['separate', 'max', 'min']
Spread = Annotated[float, Ge(1)]


def dinov3_rope_coordinates(
    cells: Num[Array, '#B L 2'], size: Float[Array, '#B #L 2'], normalise: Normalise = 'separate'
) -> Float[Array, '#B L 2']:
    """The centres of cells, `2 (p + 1/2) / n - 1`, float32.

    Args:
      cells: (row, column).
      size: rows and columns of the grid.
      normalise: n is the size along the same axis, or the larger or the smaller of both sizes.
    """
    if normalise != 'separate':
        both = size.max(-1) if normalise == 'max' else size.min(-1)
        size = jnp.broadcast_to(both[..., None], size.shape)
    return 2 * (cells.astype(jnp.float32) + 0.5) / size - 1


def dinov3_rope_augmented(
    coords: Float[Array, '#B L 2'],
    key: Array,
    shift: float | None = None,
    jitter: float | None = None,
    rescale: float | None = None,
) -> Float[Array, '#B L 2']:
    """Coordinates of training, with one draw for the whole batch: `(y + s) e^a e^b`.

    Args:
      shift: s is uniform in -shift .. shift, for each axis.
      jitter: a is uniform in -ln jitter .. ln jitter, for each axis.
      rescale: b is uniform in -ln rescale .. ln rescale, one number for both axes.
    """
    keys = jax.random.split(key, 3)
    draw = lambda key, count, most: jax.random.uniform(key, (count,), jnp.float32, -most, most)
    if shift is not None:
        coords = coords + draw(keys[0], 2, shift)
    if jitter is not None:
        coords = coords * jnp.exp(draw(keys[1], 2, math.log(jitter)))
    if rescale is not None:
        coords = coords * jnp.exp(draw(keys[2], 1, math.log(rescale)))
    return coords


def dinov3_rope_periods(
    count: int, base: float = 100.0, periods: tuple[float, float] | None = None
) -> np.ndarray:
    """The periods of an axis, float64: `base^(k/count)`, k = 0 .. count-1, or a geometric series
    from the first to the second of `periods`.

    Example:
      >>> dinov3_rope_periods(4).round(2).tolist()
      [1.0, 3.16, 10.0, 31.62]
    """
    steps = np.arange(count, dtype=np.float64)
    if periods is None:
        return base ** (steps / count)
    return periods[0] * (periods[1] / periods[0]) ** (steps / max(count - 1, 1))


def dinov3_rope(
    x: Num[Array, 'B L heads H'], coords: Float[Array, '#B L 2'], periods: np.ndarray
) -> Num[Array, 'B L heads H']:
    """Queries or keys whose pair (k, k + H/2) turns by `2 pi y / T_k` for the first H/4 pairs, and
    by `2 pi x / T_k` for the others.

    Args:
      coords: (y, x).
      periods: H/4 numbers T.
    """
    angles = phase(coords, TWO_PI / periods)
    return rotate(x, angles.reshape(*angles.shape[:2], 1, -1))


@register(
    'dinov3_rope',
    kind='encoding',
    card=Card(
        name='RoPE of DINOv3',
        example='dinov3_rope(size=(8, 64), rescale=2.0)',
        share='model',
        relative=True,
    ),
)
class DINOv3Rope(NormalisedGrid):
    """Rotates by the row and the column as coordinates between -1 and 1.

    `q'_i = R(2 pi y_i / T | 2 pi x_i / T) q_i`, `T_k = base^(4k/H)`, `y = 2 (r + 1/2)/n - 1`, and
    keys alike. So a grid of more cells has the same angles between its borders. `place` puts (y, x)
    in the place of (row, column), so no part that reads cells may stand beside it. A token that is
    not on the grid, such as a class token, gets the origin, where nothing turns. In training one
    draw for a batch shifts and scales the coordinates, see `dinov3_rope_augmented`; evaluation has
    no draw. A shift changes no logit between two patches; it changes those between a patch and a
    class token.

    Differs from the paper: all layers share the draw of a batch, where the released code draws anew
    in every block. The released models train with `rescale=2.0` and no other draw.

    Args:
      size: rows and columns of the grid on which the tokens stand; cells beyond it go on outwards.
        None takes the largest row and column of the valid tokens of a sequence, or of a packed
        document, plus one. A new token then changes all others, so no decode cache can serve it.
      base: base of the periods.
      periods: the smallest and the largest period, in the place of `base`.
      normalise: 'separate' divides rows and columns by their own numbers, 'max' and 'min' both by
        the larger or the smaller one.
      shift, jitter, rescale: of the draws of training; None is no draw.
      head_dim: H, from the model.

    Raises:
      ValueError: at call, positions that are not [B, L, 2], or that are fractions while size is
        None.

    Reference: Siméoni et al., arXiv 2508.10104.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('dinov3_rope()', head_dim=8)
      >>> part.place(pj.Tokens.on_grid(2, 2, extra=1)).pos[0].tolist()
      [[0.0, 0.0], [-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]
    """

    components = 2

    def __init__(
        self,
        size: tuple[Size, Size] | None = None,
        base: Base = 100.0,
        periods: tuple[Positive, Positive] | None = None,
        normalise: Normalise = 'separate',
        shift: Positive | None = None,
        jitter: Spread | None = None,
        rescale: Spread | None = None,
        head_dim: Annotated[int, Multiple(4)] = CONTEXT,
    ):
        self.size, self.base, self.periods, self.head_dim = size, base, periods, head_dim
        self.normalise: Normalise = normalise
        self.draws = shift, jitter, rescale

    def coordinates(self, cells, size, key):
        coords = dinov3_rope_coordinates(cells, size, self.normalise)
        if key is None:
            return coords
        return dinov3_rope_augmented(coords, key, *self.draws)

    def turned(self, x, tok):
        periods = dinov3_rope_periods(self.head_dim // 4, self.base, self.periods)
        return dinov3_rope(x, self.placed(tok), periods)
