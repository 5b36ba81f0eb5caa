"""Multi-scale explicit positional encoding of the grids of a convolutional generator."""

from typing import Annotated

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.features.coordinates.encoder import MAX_FEATURES, CoordinateEncoder
from posenc_jax.protocol.bounds import Ge, Le, Multiple, Positive
from posenc_jax.protocol.errors import check_number
from posenc_jax.protocol.registry import Card, register


def mspe(coords: Num[Array, '... 2'], channels: int, scale: float = 1.0) -> Float[Array, '... C']:
    """The features of `MSPE`, sines and cosines of the column and then of the row.

    Args:
      coords: (row, column).
      channels: C, a multiple of 4.
      scale: divides the coordinates.

    Raises:
      ValueError: channels that are no positive multiple of 4; a scale that is not positive.

    Reference: Choi, Lee, Jeong, Yoon, arXiv 2108.01285.

    Example:
      >>> mspe(jnp.array([0.0, 1.0]), 4).round(4).tolist()
      [0.8415, 0.5403, 0.0, 1.0]
    """
    if channels < 4 or channels % 4:
        raise ValueError(f'mspe needs a positive multiple of 4 channels, got {channels}')
    check_number('mspe scale', scale, above=0)
    frequencies = 10000.0 ** (-4.0 * np.arange(channels // 4) / channels) / scale
    angle = phase(coords[..., ::-1], frequencies)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(
        *coords.shape[:-1], channels
    )


def shifted_axis(length: int, shift: Float[Array, ''] | float) -> Float[Array, 'length']:
    """The coordinates 0 .. n - 1 of an axis, moved: `roll(arange(n), round(s)) + round(s) - s`.

    Whole shifts are circular, and fractional ones add the rest to every coordinate. Halves are
    rounded to even numbers.
    """
    shift = jnp.asarray(shift, jnp.float32)
    whole = jnp.round(shift)
    axis = jnp.arange(length, dtype=jnp.float32)
    return jnp.roll(axis, whole.astype(jnp.int32)) + (whole - shift)


def grid_coordinates(
    height: int,
    width: int,
    shift: Float[Array, '2'] | tuple[float, float] = (0.0, 0.0),
    size: tuple[int, int] | None = None,
) -> Float[Array, 'height width 2']:
    """(row, column) of every cell of a grid.

    Args:
      height, width: of the grid.
      shift: down and to the right, in pixels of the full resolution.
      size: height and width of the full resolution; None for those of this grid. A grid of
        resolution R is moved by `shift R / size`.
    """
    full = (height, width) if size is None else size
    rows = shifted_axis(height, shift[0] * (height / full[0]))
    columns = shifted_axis(width, shift[1] * (width / full[1]))
    return jnp.stack(jnp.meshgrid(rows, columns, indexing='ij'), axis=-1)


def shifted_constant(
    constant: Float[Array, 'height width C'], shift: Float[Array, '2'] | tuple[float, float]
) -> Float[Array, 'height width C']:
    """How the baseline moves its trained input: along each axis the linear interpolation between
    the two rolls beside the shift, which is truncated towards zero, not rounded.

    Args:
      constant: the trained input of the generator.
      shift: down and to the right, in cells of the constant.
    """
    for axis in range(2):
        moved = jnp.asarray(shift[axis], jnp.float32)
        whole = jnp.trunc(moved)
        rest = moved - whole
        near = jnp.roll(constant, whole.astype(jnp.int32), axis)
        far = jnp.roll(constant, (whole + jnp.sign(rest)).astype(jnp.int32), axis)
        constant = (1 - jnp.abs(rest)) * near + jnp.abs(rest) * far
    return constant


@register(
    'mspe',
    kind='coordinates',
    card=Card(
        name='MS-PE',
        example='mspe(features=16)',
        use_when=(
            'You generate images by convolutions and want them at several resolutions or '
            'shifted; the measured claim is mixed.'
        ),
        share='model',
    ),
)
class MSPE(CoordinateEncoder):
    """Sines and cosines of the columns and rows of a grid, for the resolutions of a generator.

    `PE[2m], PE[2m+1] = sin, cos(column w_m)` in the first half of the channels, of the row in the
    second, `w_m = 10000^(-4m/C) / scale`. It encodes points (row, column), which `grid_coordinates`
    gives for a grid that may be shifted; larger grids extend them. `MultiScalePositions` adds it to
    the features at every resolution. Differs from the paper: nothing.

    Args:
      features: C, a multiple of 4.
      scale: divides the coordinates.

    Reference: Choi, Lee, Jeong, Yoon, arXiv 2108.01285.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> make_features('mspe(features=8)').encode(grid_coordinates(4, 6)).shape
      (4, 6, 8)
    """

    def __init__(
        self,
        features: Annotated[int, Ge(4), Le(MAX_FEATURES), Multiple(4)] = 512,
        scale: Positive = 1.0,
    ):
        self.components, self.width, self.scale = 2, features, scale

    def encode(self, coords):
        return mspe(self.check(coords), self.width, self.scale)


class MultiScalePositions(nnx.Module):
    """The encoding at every resolution of a generator, with a trained factor gamma for each.

    `y = x + gamma PE`, gamma = 1 at first, behind the convolution that follows each up-sampling;
    the constant input of the lowest resolution is replaced by PE, without a factor.

    Args:
      levels: how many resolutions have a factor.
      scale: divides the coordinates.

    Raises:
      ValueError: fewer than one level; at call, a level that does not exist.
    """

    def __init__(self, levels: int, scale: float = 1.0):
        if levels < 1:
            raise ValueError(f'MultiScalePositions needs at least 1 level, got {levels}')
        self.scale = check_number('mspe scale', scale, above=0)
        self.gamma = nnx.Param(jnp.ones(levels, jnp.float32), axes=(None,))

    def first(
        self,
        height: int,
        width: int,
        channels: int,
        shift: Float[Array, '2'] | tuple[float, float] = (0.0, 0.0),
        size: tuple[int, int] | None = None,
    ) -> Float[Array, 'height width C']:
        """PE in the place of the constant input; arguments as for `grid_coordinates`."""
        return mspe(grid_coordinates(height, width, shift, size), channels, self.scale)

    def __call__(
        self,
        x: Float[Array, '... height width C'],
        level: int,
        shift: Float[Array, '2'] | tuple[float, float] = (0.0, 0.0),
        size: tuple[int, int] | None = None,
    ) -> Float[Array, '... height width C']:
        """`x + gamma PE`, in the dtype of x."""
        if not 0 <= level < self.gamma.shape[0]:
            raise ValueError(
                f'MultiScalePositions has levels 0 .. {self.gamma.shape[0] - 1}, got {level}'
            )
        height, width, channels = x.shape[-3:]
        added = mspe(grid_coordinates(height, width, shift, size), channels, self.scale)
        return x + (self.gamma[level] * added).astype(x.dtype)
