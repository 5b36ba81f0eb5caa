"""Which quarter of the image is the blob in: a task about absolute places."""

import dataclasses
from typing import Literal

import numpy as np

from posenc_jax.lab.tasks.images.image_task import ImageTask, blob
from posenc_jax.protocol.bounds import NonNegative, Positive
from posenc_jax.protocol.registry import register


@register('quadrant', kind='task')
@dataclasses.dataclass(frozen=True)
class Quadrant(ImageTask):
    """Noise with one bright blob; the class is the quarter that it lies in, 0 to 3 row by row.

    A model can only tell it from absolute positions. Larger images show either more of the scene,
    with blobs of the same size in pixels, or the same scene at a higher resolution.

    Args:
      noise: standard deviation of the noise; the blob has height 4.
      larger: what larger images show, 'scene' or 'detail'. Blobs have a radius of 1.5 pixels, or
        of 1.5 pixels of an image with 16 x 16.
      aspect: columns for each row. The shorter side is then the one that has 16 pixels.

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
