"""Handwritten digits: the 1,797 pictures of 8 x 8 pixels that scikit-learn brings along."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.base import extras
from posenc_jax.lab.tasks.class_task import split_numbers
from posenc_jax.lab.tasks.images.image_task import StoredImages
from posenc_jax.protocol.registry import register

_SIDE = 8  # pixels of the stored pictures
_MEAN, _STD = 4.884, 6.017  # of all their pixels, which are 0 .. 16


@register('digits', kind='task')
@dataclasses.dataclass(frozen=True)
class Digits(StoredImages):
    """Which digit is it: 1,797 real pictures, 0 to 9, cut into splits of one seventh for test, one
    for validation and the rest for training. They need scikit-learn.

    A picture has 8 x 8 pixels; at n x n pixels, n a multiple of 8, every pixel is a square, so
    larger pictures are the same scene at a higher resolution.

    Raises:
      ImportError: at the first picture, scikit-learn is missing.
      ValueError: at the first picture, a side that is no multiple of 8.

    Example:
      >>> task = Digits()
      >>> task.output_size, task.channels, [len(task.numbers(s)) for s in ('train', 'test')]
      (10, 1, [1285, 256])
    """

    output_size = 10

    def numbers(self, split: str) -> Int[np.ndarray, ' M']:
        return split_numbers(1797, split)

    def side(self, length):
        side = super().side(length)
        if side % _SIDE:
            below = side // _SIDE * _SIDE
            nearest = f'{below} or {below + _SIDE}' if below else f'{_SIDE}'
            raise ValueError(
                f'digits have 8 x 8 pixels, each of which becomes a square: the side must be a '
                f'multiple of 8, got {side}; nearest: {nearest}'
            )
        return side

    @functools.cached_property
    def _stored(self):
        with extras.explained():
            from sklearn.datasets import load_digits
        return load_digits()

    def pictures(
        self, numbers: Int[np.ndarray, ' B'], side: int
    ) -> tuple[Float[np.ndarray, 'B n n 1'], Int[np.ndarray, ' B']]:
        stored = self._stored
        times = side // _SIDE
        found = stored.images[numbers].repeat(times, axis=1).repeat(times, axis=2)
        return ((found - _MEAN) / _STD)[..., None], stored.target[numbers]
