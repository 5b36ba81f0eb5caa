"""Tasks on pictures that exist: their splits, and batches drawn from them."""

import abc
import functools

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.lab.tasks.images.image_task import ImageTask
from posenc_jax.lab.tasks.task import Length, Reader


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
