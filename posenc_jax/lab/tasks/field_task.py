"""The task interface of fields: points and what is to be said at each of them.

A batch is a dict of arrays with one row a point:

  coords     float32 [B, d], the coordinates
  targets    float32 [B, O], values in [-1, 1] or bits 0 and 1; or int32 [B], a class a point
  loss_mask  float32 [B], the weight of each point in the loss

The task length is the resolution of a grid, in points along an axis; for places on the globe it is
the number of places of an even lattice.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped

from posenc_jax.lab.tasks.task import Length, Task

KEPT = 8  # grids that all tasks of a class together keep for the next batch or evaluation


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Points with their targets.

    Attributes:
      coords: float32.
      targets: float32 [N, O], or int32 [N] for classes.
      parts: groups of points, each measured on its own, by their names. The group '' gives the
        main number; without it, all points do.
    """

    coords: Float[np.ndarray, 'N d']
    targets: Shaped[np.ndarray, 'N *O']
    parts: Mapping[str, Bool[np.ndarray, ' N']] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ('coords', 'targets'):
            if not np.isfinite(array := getattr(self, name)).all():
                place = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
                raise ValueError(f'{name} must be finite, got {array[place]} at {list(place)}')


class FieldTask(Task):
    """A function of points, which a field is fitted to.

    Training draws `batch` of its points without repetition, all of them if there are as many. They
    are those of a grid unless a task says otherwise. Evaluation reads all points of grids of other
    resolutions.
    """

    one_length: ClassVar[bool] = True
    counted = 'the resolution'
    bits: int = 0  # of the whole numbers that the targets stand for; 0 for none

    @property
    @abc.abstractmethod
    def components(self) -> int:
        """d, how many coordinates a point has."""

    @property
    @abc.abstractmethod
    def output_size(self) -> int:
        """How many values, bits or classes a point has."""

    @property
    def predicts(self) -> Literal['value', 'bits', 'class']:
        """What the targets are: values (squared error), bits (binary cross entropy) or a class."""
        return 'value'

    @abc.abstractmethod
    def points(self, length: int) -> Points:
        """The points of the grid of a resolution that training draws from."""

    def evaluation_points(self, length: int) -> Points:
        """The points that evaluation reads at a resolution."""
        return self.points(length)

    def images(
        self, length: int, output: Float[np.ndarray, 'N O']
    ) -> tuple[Float[np.ndarray, 'H W C'], Float[np.ndarray, 'H W C']] | None:
        """The true and the fitted picture of `evaluation_points`, in [0, 1], from what the field
        says at these points; None for tasks that are no pictures.
        """
        return None

    def map_points(self) -> tuple[Points, tuple[int, int]] | None:
        """The points of a map of the classes, and its rows and columns, where those of evaluation
        lie on no grid: row by row from the north, each from the west. None for tasks without a map.
        """
        return None

    vocab_size = 0

    def width(self, length: Length) -> int:
        """1, since a row is one point; raises ValueError for a resolution that does not exist."""
        self.range(length)
        return 1

    def check_batch(self, batch: int, length: int) -> None:
        """Raises ValueError if training has fewer points than a batch."""
        if batch > (count := len(self.points(length).coords)):
            raise ValueError(
                f'train.batch is {batch}, but training at length {length} has {count} points; '
                f'nearest: {count}, which is all of them'
            )

    def sample(self, rng, batch, length):
        _, length = self.range(length)
        self.check_batch(batch, length)
        points = self.points(length)
        count = len(points.coords)
        chosen = (
            slice(None)
            if batch == count
            else rng.choice(count, batch, replace=False, shuffle=False)
        )
        return {
            'coords': points.coords[chosen],
            'targets': points.targets[chosen],
            'loss_mask': np.ones(batch, np.float32),
        }

    def decode(self, ids):
        return ' '.join(map(str, np.asarray(ids).tolist()))


def grid_points(*axes: Float[np.ndarray, ' _']) -> Float[np.ndarray, 'N d']:
    """All points of a grid, the last axis the fastest, float32."""
    grid = np.meshgrid(*axes, indexing='ij')
    return np.stack([axis.ravel() for axis in grid], axis=-1).astype(np.float32)
