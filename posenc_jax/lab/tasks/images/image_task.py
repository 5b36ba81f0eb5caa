"""The base classes of tasks on images: one class for each image."""

import abc
import functools
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.lab.tasks.class_task import ClassTask, class_targets
from posenc_jax.lab.tasks.task import Batch, Length, Reader

LARGEST = 2048  # pixels along a side


class ImageTask(ClassTask):
    """A distribution of images with a class each. The task length is the number n of rows.

    A batch has the `image` [B, n, columns, C], with a mean near 0 and a variance near 1, and one
    target a row. A subclass draws both in `images`.

    Attributes:
      aspect: columns for each row. Images have n columns unless a subclass has it as an option.
    """

    is_image: ClassVar[bool] = True
    one_length: ClassVar[bool] = True
    counted = 'side of an image in pixels'
    aspect = 1.0
    channels = 1

    @abc.abstractmethod
    def images(
        self, rng: np.random.Generator, batch: int, side: int
    ) -> tuple[Float[np.ndarray, 'B rows columns C'], Int[np.ndarray, ' B']]:
        """Images of `side` rows and `columns(side)` columns, and their classes."""

    def columns(self, side: int) -> int:
        """The columns of images of `side` rows, the nearest whole number to `side * aspect`.

        Raises:
          ValueError: a number outside 1 .. LARGEST.
        """
        columns = round(side * self.aspect)
        if not 1 <= columns <= LARGEST:
            raise ValueError(
                f'images of {side} rows have {columns} columns with aspect={self.aspect}, but the '
                f'columns must lie in 1 .. {LARGEST}'
            )
        return columns

    def side(self, length: Length) -> int:
        """The rows of the images, which is their side where they are square.

        Raises:
          ValueError: a range of sides, or a side outside 1 .. LARGEST.
        """
        low, high = self.range(length)
        if low != high:
            raise ValueError(f'all images of a batch have one side, got the range {length!r}')
        if high > LARGEST:
            raise ValueError(f'the side of an image is at most {LARGEST} pixels, got {high}')
        self.columns(high)
        return high

    def width(self, length: Length) -> int:
        side = self.side(length)
        return side * self.columns(side)

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        return self.batch(*self.images(rng, batch, self.side(length)))

    def batch(
        self, image: Float[np.ndarray, 'B rows columns C'], classes: Int[np.ndarray, ' B']
    ) -> Batch:
        """The batch of images and their classes."""
        return {'image': image.astype(np.float32), **class_targets(classes)}


class StoredImages(ImageTask):
    """An `ImageTask` on a list of pictures; batches are drawn from those of one split, with
    replacement.
    """

    @abc.abstractmethod
    def numbers(self, split: str) -> Int[np.ndarray, ' M']:
        """The numbers of the pictures of a split."""

    @abc.abstractmethod
    def pictures(
        self, numbers: Int[np.ndarray, ' B'], side: int
    ) -> tuple[Float[np.ndarray, 'B rows columns C'], Int[np.ndarray, ' B']]:
        """Pictures of `side` rows and `columns(side)` columns, and their classes."""

    def check(self, side: int) -> None:
        """Raises ValueError if pictures cannot be read, or not at this size."""

    def images(self, rng, batch, side):
        return self.pictures(rng.choice(self.numbers('train'), batch), side)

    def reader(self, split: str, length: Length) -> Reader:
        """Pictures of a split; also ValueError for pictures that cannot be read."""
        side = self.side(length)
        self.check(side)
        return functools.partial(self._rows, self.numbers(split), side)

    def _rows(self, numbers, side, rng, batch_size, rows):
        return self.batch(*self.pictures(rng.choice(numbers, batch_size)[rows], side))


def blob(
    rows: int,
    columns: int,
    row: Float[np.ndarray, ' B'],
    column: Float[np.ndarray, ' B'],
    radius: float,
) -> Float[np.ndarray, 'B rows columns 1']:
    """A Gaussian of height 1 around a place in pixels; `radius` is its standard deviation."""
    near = lambda n, place: np.exp(-0.5 * ((np.arange(n) - place[:, None]) / radius) ** 2)
    return (near(rows, row)[:, :, None] * near(columns, column)[:, None, :])[..., None]
