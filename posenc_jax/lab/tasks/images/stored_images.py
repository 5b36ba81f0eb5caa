"""Tasks on pictures that exist: their splits, and batches drawn from them."""

import abc
import functools
import sys
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.lab.tasks.images.image_task import ImageTask
from posenc_jax.lab.tasks.task import Batch, Length, batch_rng, shard_rows

if TYPE_CHECKING:
    import grain


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

    def dataset(
        self,
        *,
        length: Length,
        batch_size: int,
        seed: int,
        split: str = 'train',
        shard: tuple[int, int] = (0, 1),
    ) -> 'grain.MapDataset':
        """As `Task.dataset`, drawn from the pictures of the split; also ValueError for pictures
        that cannot be read.
        """
        import grain

        side = self.side(length)
        batch_rng(seed, split, 0)
        self.check(side)
        rows, numbers = shard_rows(batch_size, shard), self.numbers(split)
        return grain.MapDataset.range(sys.maxsize).map(
            functools.partial(_drawn, self, numbers, batch_size, side, seed, split, rows)
        )


def _drawn(task, numbers, batch_size, side, seed, split, rows, index) -> Batch:
    picked = batch_rng(seed, split, index).choice(numbers, batch_size)[rows]
    return task.batch(*task.pictures(picked, side))
