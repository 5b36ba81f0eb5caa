"""The bits of a picture, with the number of the bit as a coordinate."""

import dataclasses
import functools
from typing import Literal

import numpy as np

from posenc_jax.fields.bit_plane_inr import bit_coordinates, bits_of, from_bits
from posenc_jax.lab.tasks.field_task import KEPT, FieldTask, Points, grid_points
from posenc_jax.lab.tasks.pictures.picture import Picture, pixel_centres
from posenc_jax.lab.tasks.task import Task
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register


@register('bit_planes', kind='task')
@dataclasses.dataclass(frozen=True)
class BitPlanes(FieldTask):
    """Every bit of every pixel of a picture: points (row, column, bit), with the bit axis from -1,
    the least significant, to 1, and a binary cross entropy as the loss.

    A bit error rate of 0 means that the picture is stored without loss. A resolution n has n * n *
    bits points.

    Args:
      inner: the picture.
      bits: 8 or 16, of a value.
      grid: where the n rows and columns lie: 'centres', -1 + 2 (i + 1/2) / n, so that all
        resolutions show the same square, or 'ends', n values from -1 to 1, as in the released code.

    Raises:
      SpecError: another task than a picture, or a picture with bits or an outside of its own.

    Reference: Han et al., arXiv 2502.21001.

    Example:
      >>> task = BitPlanes(Picture('synthetic'))
      >>> task.points(4).coords.shape, task.points(4).targets.shape
      ((128, 3), (128, 1))
    """

    inner: Task = Picture()
    bits: Literal[8, 16] = 8
    grid: Literal['centres', 'ends'] = 'centres'

    def __post_init__(self):
        if not isinstance(self.inner, Picture):
            raise SpecError(
                f'bit_planes takes a picture, such as picture(); got {type(self.inner).__name__}'
            )
        if self.inner.bits or self.inner.outside:
            raise SpecError(
                'bit_planes takes a picture without bits or outside of its own; give bits to '
                'bit_planes'
            )

    @property
    def components(self):
        return self.inner.components + 1

    @property
    def output_size(self):
        return self.inner.output_size

    predicts = 'bits'

    def width(self, length):
        return self.inner.width(length)

    @functools.lru_cache(maxsize=KEPT)  # noqa: B019
    def points(self, length):
        planes = bits_of(self.inner.whole_numbers(length, self.bits), self.bits)
        ends = self.grid == 'ends'
        axis = np.linspace(-1.0, 1.0, length) if ends else pixel_centres(length)
        coords = grid_points(axis, axis, bit_coordinates(self.bits))
        targets = np.moveaxis(planes, -1, -2).reshape(len(coords), -1).astype(np.float32)
        return Points(coords, targets)

    def images(self, length, output):
        planes = [self.points(length).targets, output > 0]
        shape = (length, length, self.bits, -1)
        whole = (from_bits(np.moveaxis(a.astype(np.int64).reshape(shape), -2, -1)) for a in planes)
        return tuple(values / (2**self.bits - 1) for values in whole)
