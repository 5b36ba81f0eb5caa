"""A picture as a function of the plane, averaged over the pixels of a grid of any resolution."""

import dataclasses
import functools
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.fields.bit_plane_inr import MAX_BITS
from posenc_jax.lab.tasks.field_task import KEPT, FieldTask, Points, grid_points
from posenc_jax.lab.tasks.pictures.sources import check_name, load_picture
from posenc_jax.protocol.bounds import Ge, Le, Lt
from posenc_jax.protocol.registry import register


def pixel_centres(count: int, beyond: int = 0) -> Float[np.ndarray, ' n']:
    """The coordinates of pixels that fill [-1, 1], and of some more on either side."""
    return (2 * np.arange(-beyond, count + beyond) + 1) / count - 1


def averaging(edges: Float[np.ndarray, ' m'], size: int) -> Float[np.ndarray, 'n S']:
    """The matrix that averages `size` pixels over the cells between edges, a part of a pixel by
    that part.
    """
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(size)
    shared = np.minimum(high, pixel + 1) - np.maximum(low, pixel)
    return np.clip(shared, 0, None) / (high - low)


@register('picture', kind='task')
@dataclasses.dataclass(frozen=True)
class Picture(FieldTask):
    """The values of a picture at the centres of its pixels, in [-1, 1].

    The middle square of the picture is averaged down to a grid of n x n pixels, which fill
    [-1, 1]^2; coordinates are (row, column). So a resolution of 2n or 4n has values that are
    true, at points between those of n. Batches are drawn from all pixels; evaluation reads them in
    order. Papers on fields often put the first and the last pixel at -1 and 1 instead; then grids
    of two resolutions have other distances from the border.

    Args:
      name: 'china' or 'flower' (photographs of 427 rows), 'digits' (8 x 8), 'synthetic' (512 x 512
        noise of power 1 / f^2 with a box), or 'image:PATH', a file of the user.
      index: which digit, or the seed of the noise.
      gray: whether the channels are averaged.
      outside: share of each side that training does not see; evaluation measures it on its own.
      bits: the values are rounded to whole numbers of so many bits, and evaluation counts the bits
        that are wrong; 0 leaves them as they are.

    Raises:
      SpecError: an unknown picture or index.
      ValueError: at call, a resolution beyond that of the picture.

    Example:
      >>> task = Picture('synthetic')
      >>> batch = task.sample(np.random.default_rng(0), 5, 16)
      >>> batch['coords'].shape, batch['targets'].shape
      ((5, 2), (5, 1))
    """

    name: str = 'china'
    index: int = 0
    gray: bool = False
    outside: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    bits: Annotated[int, Ge(0), Le(MAX_BITS)] = 0

    def __post_init__(self):
        check_name(self.name, self.index)

    @functools.cached_property
    def pixels(self) -> Float[np.ndarray, 'S S C']:
        """The middle square at its full resolution, in [0, 1]."""
        image = load_picture(self.name, self.index)
        side = min(image.shape[:2])
        top, left = ((size - side) // 2 for size in image.shape[:2])
        image = image[top : top + side, left : left + side]
        return image.mean(axis=-1, keepdims=True) if self.gray else image

    components = 2

    @property
    def output_size(self):
        return self.pixels.shape[-1]

    def width(self, length):
        high = self.range(length)[1]
        seen = self._seen
        if high > seen:
            raise ValueError(
                f'picture {self.name!r} has only {seen} pixels along a side'
                f'{" that training sees" if self.outside else ""}; a resolution of {high} has no '
                f'true values; at most {seen}'
            )
        return 1

    @property
    def _seen(self) -> int:
        return self.pixels.shape[0] - 2 * self._margin

    @property
    def _margin(self) -> int:
        return round(self.outside * self.pixels.shape[0])

    def unit_values(self, length: int, beyond: int = 0) -> Float[np.ndarray, 'n n C']:
        """The picture of a resolution, in [0, 1], with more pixels around what training sees.

        Raises:
          ValueError: a resolution beyond that of the picture.
        """
        self.width(length)
        size, margin = self.pixels.shape[0], self._margin
        pixel = (size - 2 * margin) / length
        matrix = averaging(margin + pixel * np.arange(-beyond, length + beyond + 1), size)
        return np.einsum('ri,ijc,sj->rsc', matrix, self.pixels, matrix, optimize=True)

    def whole_numbers(self, length: int, bits: int, beyond: int = 0) -> Int[np.ndarray, 'n n C']:
        """The picture of a resolution in whole numbers 0 .. 2^bits - 1."""
        values = self.unit_values(length, beyond)
        return np.clip(np.rint(values * (2**bits - 1)), 0, 2**bits - 1).astype(np.int64)

    @functools.lru_cache(maxsize=KEPT)  # noqa: B019
    def _points(self, length: int, beyond: int) -> Points:
        if self.bits:
            values = self.whole_numbers(length, self.bits, beyond) / (2**self.bits - 1)
        else:
            values = self.unit_values(length, beyond)
        axis = pixel_centres(length, beyond)
        coords = grid_points(axis, axis)
        outside = (np.abs(coords) > 1).any(axis=-1)
        parts = {'': ~outside, 'outside': outside} if beyond else {}
        targets = (2 * values - 1).reshape(-1, self.output_size).astype(np.float32)
        return Points(coords, targets, parts)

    def points(self, length):
        return self._points(length, 0)

    def beyond(self, length: int) -> int:
        """How many pixels of a resolution lie outside of what training sees, on each side."""
        return int(self._margin * length / self._seen)

    def evaluation_points(self, length):
        return self._points(length, self.beyond(length))

    def images(self, length, output):
        side = length + 2 * self.beyond(length)
        truth, fitted = self.evaluation_points(length).targets, np.clip(output, -1, 1)
        return tuple(((a + 1) / 2).reshape(side, side, -1) for a in (truth, fitted))
