"""What tasks on images have in common: one class for each image."""

import abc
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.tasks.class_task import ClassTask, class_targets
from posenc_jax.tasks.task import Batch, Length, length_range

LARGEST = 2048  # pixels along a side


class ImageTask(ClassTask):
    """A distribution of square images with a class each. The task length is the side in pixels.

    A batch has the `image` [B, n, n, C], with a mean near 0 and a variance near 1, and one target
    a row. A subclass draws both in `images`.
    """

    is_image: ClassVar[bool] = True
    one_length: ClassVar[bool] = True

    @property
    def channels(self) -> int:
        return 1

    @abc.abstractmethod
    def images(
        self, rng: np.random.Generator, batch: int, side: int
    ) -> tuple[Float[np.ndarray, 'B n n C'], Int[np.ndarray, ' B']]:
        """Images of n = `side` pixels along each side, and their classes."""

    def side(self, length: Length) -> int:
        """The side of the images in pixels.

        Raises:
          ValueError: a range of sides, or a side outside 1 .. LARGEST.
        """
        low, high = length_range(length, 1, 'side of an image')
        if low != high:
            raise ValueError(f'all images of a batch have one side, got the range {length!r}')
        if high > LARGEST:
            raise ValueError(f'the side of an image is at most {LARGEST} pixels, got {high}')
        return high

    def width(self, length: Length) -> int:
        return self.side(length) ** 2

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        return self.batch(*self.images(rng, batch, self.side(length)))

    def batch(self, image: Float[np.ndarray, 'B n n C'], classes: Int[np.ndarray, ' B']) -> Batch:
        """The batch of images and their classes."""
        return {'image': image.astype(np.float32), **class_targets(classes)}


def blob(
    side: int, row: Float[np.ndarray, ' B'], column: Float[np.ndarray, ' B'], radius: float
) -> Float[np.ndarray, 'B n n 1']:
    """A Gaussian of height 1 around a place in pixels; `radius` is its standard deviation."""
    pixel = np.arange(side)
    near = lambda place: np.exp(-0.5 * ((pixel - place[:, None]) / radius) ** 2)
    return (near(row)[:, :, None] * near(column)[:, None, :])[..., None]
