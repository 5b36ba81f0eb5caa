"""The base class of encoders with trained tables of a box: points outside are refused, and the
corners of a cell are read with products of weights.
"""

import functools
import operator
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from posenc_jax.base.memory import readable
from posenc_jax.features.coordinates.encoder import CoordinateEncoder, counted
from posenc_jax.language.spec import MAX_BYTES
from posenc_jax.protocol.bounds import Finite

Box = tuple[Finite, Finite]  # the smallest and the largest value of every coordinate


class BoxEncoder(CoordinateEncoder):
    """Features of the points of a box, for which there are tables.

    Other points are refused with a ValueError at call. Where values are not known, because JAX
    traces them, the features of such a point are NaN.

    Attributes:
      box: the smallest and the largest value, of every coordinate.
    """

    box: tuple[float, float]

    def check_values(self, coords):
        super().check_values(coords)
        low, high = self.box
        wrong = ((coords < low) | (coords > high)).any(-1)
        if wrong.any():
            raise ValueError(
                f'{type(self).__name__} encodes coordinates of its box {low:g} .. {high:g}, got '
                f'{coords.min():g} .. {coords.max():g}; {counted(wrong)}; give a box that holds '
                'all points'
            )

    def places(self, coords) -> tuple[Float[Array, '... d'], Bool[Array, '... 1']]:
        """Where points lie in the box, each coordinate in [0, 1], and whether they do; the others
        are put at 0, so that they give no gradient that is not a number.
        """
        coords, (low, high) = self.check(coords), self.box
        inside = ((coords >= low) & (coords <= high)).all(-1, keepdims=True)
        return jnp.where(inside, (coords - low) / (high - low), 0.0), inside


def checked_box(name: str, box: tuple[float, float]) -> tuple[float, float]:
    """The box; a ValueError if its first number is not below the second in float32."""
    low, high = box
    if not np.float32(low) < np.float32(high):
        raise ValueError(f'{name} box has its smallest number first, got {tuple(box)}')
    return low, high


def check_tables(name: str, numbers: int) -> None:
    """Raises ValueError if tables of so many float32 numbers would take more than 1 GiB."""
    if 4 * numbers > MAX_BYTES:
        raise ValueError(
            f'{name}: its tables would take {readable(4 * numbers)}, at most '
            f'{readable(MAX_BYTES)} are accepted; make one of its sizes smaller'
        )


def spread(pairs: Sequence[Array]) -> list[Array]:
    """Pairs [..., 2], one for each of d coordinates, as arrays that broadcast to [..., 2, ..., 2],
    the corners of a cell.
    """
    d = len(pairs)
    return [
        p.reshape(*p.shape[:-1], *(1,) * a, 2, *(1,) * (d - 1 - a)) for a, p in enumerate(pairs)
    ]


def corner_weights(share: Float[Array, '... d']) -> Float[Array, '...']:
    """The weights of the corners [..., 2, ..., 2] of a cell: for each coordinate the factor f of
    the upper side and 1 - f of the lower, f the share of the cell that lies below the point.
    """
    pairs = jnp.stack([1 - share, share], axis=-1)
    return functools.reduce(
        operator.mul, spread([pairs[..., axis, :] for axis in range(share.shape[-1])])
    )


def blended(
    rows: Float[Array, '...'], weights: Float[Array, '...'], components: int
) -> Float[Array, '... F']:
    """The sum over the corners of rows [..., 2, ..., 2, F] times their weights."""
    return (rows * weights[..., None]).sum(tuple(range(-1 - components, -1)))
