"""Blobs in noise: the direction between two of them, a task about relative places, and the quarter
of one, a task about absolute places.
"""

import dataclasses
from typing import Annotated, Literal

import numpy as np

from posenc_jax.lab.tasks.images.image_task import ImageTask, blob
from posenc_jax.protocol.bounds import Ge, Le, NonNegative, Positive
from posenc_jax.protocol.registry import register


@register('blobs', kind='task')
@dataclasses.dataclass(frozen=True)
class Blobs(ImageTask):
    """Noise with a dark and a bright blob, anywhere; the class is the direction from the dark to
    the bright one: 0 for the right, and on clockwise.

    A model can tell it from relative positions, wherever the two lie. Larger images show either
    more of the scene, with the same two blobs somewhere in it, or the same scene at a higher
    resolution.

    Args:
      directions: number of classes, at least 2; all directions but those within a fifth of a
        class of the border between two classes occur.
      noise: standard deviation of the noise; the blobs have heights 4 and -4.
      larger: what images larger than 16 x 16 show, 'scene' or 'detail'. The blobs have a radius of
        1.5 pixels and a distance of 4.8 to 9.6 pixels, or of as many pixels of an image of 16 x 16.
      aspect: columns for each row. The shorter side is then the one that has 16 pixels.

    Example:
      >>> task = Blobs(noise=0.0)
      >>> batch = task.sample(np.random.default_rng(0), batch=2, length=16)
      >>> image = batch['image'][0, :, :, 0]
      >>> places = [np.unravel_index(i, image.shape) for i in (image.argmin(), image.argmax())]
      >>> np.array(places).tolist(), batch['targets'][0].tolist()  # up: class 3 of 4
      ([[13, 11], [8, 10]], [3])
    """

    directions: Annotated[int, Ge(2), Le(64)] = 4
    noise: NonNegative = 1.0
    larger: Literal['scene', 'detail'] = 'scene'
    aspect: Positive = 1.0

    @property
    def output_size(self) -> int:
        return self.directions

    def images(self, rng, batch, side):
        sides = side, self.columns(side)
        scale = min(*sides, 16) if self.larger == 'scene' else min(sides)
        radius = 1.5 * scale / 16
        classes = rng.integers(0, self.directions, batch)
        turn = (classes + rng.uniform(-0.3, 0.3, batch)) / self.directions
        length = rng.uniform(0.3, 0.6, batch) * scale
        # Rows count downwards, so the angle grows clockwise.
        apart = length * np.stack([np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn)])
        size = np.array(sides)[:, None]
        low, high = 0.1 * size - np.minimum(apart, 0), 0.9 * size - np.maximum(apart, 0)
        dark = rng.uniform(low, high)
        of = lambda place: blob(*sides, *(place - 0.5), radius)
        image = self.noise * rng.standard_normal((batch, *sides, 1))
        return image + 4 * (of(dark + apart) - of(dark)), classes


@register('quadrant', kind='task')
@dataclasses.dataclass(frozen=True)
class Quadrant(ImageTask):
    """Noise with one bright blob; the class is the quarter that it lies in, 0 to 3 row by row.

    A model can only tell it from absolute positions.

    Args:
      noise, larger, aspect: as for `Blobs`.

    Example:
      >>> batch = Quadrant(noise=0.0).sample(np.random.default_rng(0), batch=2, length=16)
      >>> batch['image'].shape, batch['targets'].tolist()
      ((2, 16, 16, 1), [[3], [2]])
    """

    noise: NonNegative = 1.0
    larger: Literal['scene', 'detail'] = 'scene'
    aspect: Positive = 1.0

    output_size = 4

    def images(self, rng, batch, side):
        sides = side, self.columns(side)
        radius = 1.5 if self.larger == 'scene' else 1.5 * min(sides) / 16
        classes = rng.integers(0, 4, batch)
        half = np.array(sides)[:, None] / 2
        # Centres keep clear of the middle lines by a tenth of the side.
        place = rng.uniform(0.1, 0.8, (2, batch)) * half
        place += np.where(np.divmod(classes, 2), 1.2 * half - 1, 0)
        image = self.noise * rng.standard_normal((batch, *sides, 1))
        return image + 4 * blob(*sides, *place, radius), classes
