"""A task that asks which of several textures an image has; no place matters in it."""

import dataclasses
from typing import Annotated

import numpy as np

from posenc_jax.lab.tasks.images.image_task import ImageTask
from posenc_jax.protocol.bounds import Ge, Gt, Le
from posenc_jax.protocol.registry import register


@register('textures', kind='task')
@dataclasses.dataclass(frozen=True)
class Textures(ImageTask):
    """Noise of mean 0 and variance 1 whose power falls as `f^-beta` with the frequency f; the class
    k of n has `beta = steepest k / (n - 1)`.

    The noise is that of a torus, and all its shifts are equally probable, so positions do not help.

    Args:
      classes: n, at least 2.
      steepest: beta of the last class, positive.

    Raises:
      ValueError: at a sample, a side below 2.

    Example:
      >>> batch = Textures().sample(np.random.default_rng(0), batch=2, length=16)
      >>> batch['image'].shape, batch['image'].std(axis=(1, 2, 3)).round(3).tolist()
      ((2, 16, 16, 1), [1.0, 1.0])
    """

    classes: Annotated[int, Ge(2), Le(64)] = 4
    steepest: Annotated[float, Gt(0), Le(8)] = 3.0

    @property
    def output_size(self) -> int:
        return self.classes

    def images(self, rng, batch, side):
        if side < 2:
            raise ValueError(f'textures need a side of at least 2 pixels, got {side}')
        classes = rng.integers(0, self.classes, batch)
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
        frequency[0, 0] = 1.0  # of the mean, which is 0 below
        beta = self.steepest * classes / (self.classes - 1)
        gain = frequency ** (-beta[:, None, None] / 2)  # the power is its square
        gain[:, 0, 0] = 0
        spectrum = np.fft.rfft2(rng.standard_normal((batch, side, side))) * gain
        image = np.fft.irfft2(spectrum, s=(side, side))
        return (image / image.std(axis=(1, 2), keepdims=True))[..., None], classes
