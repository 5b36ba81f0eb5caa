"""The base class of tasks on clouds of points: one class for each cloud."""

import abc
import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.features.coordinates.point_orders import CELL, ORDERS, point_order
from posenc_jax.lab.tasks.class_task import ClassTask, class_targets
from posenc_jax.lab.tasks.task import Batch, Length
from posenc_jax.protocol.bounds import Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointTask(ClassTask):
    """A distribution of clouds of points with a class each. The task length is N, the number of
    points; of a range of lengths, every cloud draws its own, and rows are filled up with padding.

    A batch has the coordinates twice, as `vectors` and as `positions` [B, N, 3] in float32, and one
    target a row. A subclass draws clouds in `clouds`.

    Args:
      order: the order of the points in a row: 'random', or along one of the curves of
        `features/coordinates/point_orders.py`. The mixer `pcm_layer` sorts them itself.
      size: side of a cell of the grid in which the curves run.
    """

    order: Literal['random', *ORDERS] = 'random'
    size: Positive = CELL

    counted = 'number of points'
    channels = 3
    supplies_positions = True

    @abc.abstractmethod
    def clouds(
        self, rng: np.random.Generator, counts: Int[np.ndarray, ' B']
    ) -> tuple[list[Float[np.ndarray, '_ 3']], Int[np.ndarray, ' B']]:
        """Clouds of these numbers of points, in random order, and their classes."""

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        low, high = self.range(length)
        counts = rng.integers(low, high, batch, endpoint=True)
        clouds, classes = self.clouds(rng, counts)
        points = np.zeros((batch, high, 3), np.float32)
        for row, cloud in zip(points, clouds):
            kept = cloud.astype(np.float32)
            if self.order != 'random':
                kept = kept[point_order(kept, self.order, self.size)]
            row[: len(cloud)] = kept
        found = {'vectors': points, 'positions': points, **class_targets(classes)}
        if low < high:
            found['valid'] = np.arange(high) < counts[:, None]
        return found
