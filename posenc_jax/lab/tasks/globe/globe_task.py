"""The base class of tasks on the globe: random places to train on, an even lattice to test on, and
a map.
"""

import abc
import dataclasses
import functools
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int

from posenc_jax.lab.tasks.field_task import KEPT, FieldTask, Points, grid_points
from posenc_jax.lab.tasks.globe.sphere_points import fibonacci_lattice, random_places
from posenc_jax.protocol.bounds import Ge, Le

MOST = 2**22  # places of a data set
MAP = (90, 180)  # rows and columns of a map, two degrees each
POLES = 60.0  # degrees of latitude beyond which accuracy is measured on its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobeTask(FieldTask):
    """A class at every place (longitude, latitude), in degrees.

    Training draws from `samples` random places, validation from as many others, and evaluation
    reads the places of a Fibonacci lattice. The task length is the number of places of that
    lattice, an even number. It is no difficulty: a finer lattice measures the same field more
    exactly, and training does not read it.

    Args:
      samples: places of the training data, and as many of the validation data.
      seed: of the training places; the next one is that of the validation places, whatever
        `config.seed` is.
    """

    samples: Annotated[int, Ge(1), Le(MOST)] = 10_000
    seed: Annotated[int, Ge(0), Le(2**32 - 2)] = 0

    counted = 'the number of places of the lattice'
    components = 2
    predicts = 'class'

    @abc.abstractmethod
    def classes_of(self, places: Float[np.ndarray, 'N 2']) -> Int[np.ndarray, ' N']:
        """The true class of every place."""

    def parts_of(self, places: Float[np.ndarray, 'N 2']) -> dict[str, Bool[np.ndarray, ' N']]:
        """Names -> the places that are measured on their own: those beyond 60 degrees of latitude
        ('poles') and all others ('below_60').
        """
        poles = np.abs(places[:, 1]) > POLES
        return {'': np.ones(len(places), bool), 'poles': poles, 'below_60': ~poles}

    def for_evaluation(self):
        return dataclasses.replace(self, seed=self.seed + 1)

    @functools.cached_property
    def _drawn(self) -> Points:
        places = random_places(np.random.default_rng(self.seed), self.samples)
        return self._pointed(places)

    def _pointed(self, places: Float[np.ndarray, 'N 2'], parts=None) -> Points:
        classes = self.classes_of(places).astype(np.int32)
        return Points(places.astype(np.float32), classes, parts or {})

    def width(self, length):
        high = self.range(length)[1]
        if high % 2 or high > MOST:
            nearest = min(high + high % 2, MOST)
            raise ValueError(
                'the length of a task on the globe is how many places its lattice has, an even '
                f'number of at most {MOST}, got {high}; nearest: {nearest}'
            )
        return 1

    def points(self, length):
        return self._drawn

    @functools.lru_cache(maxsize=KEPT)  # noqa: B019
    def evaluation_points(self, length):
        self.width(length)
        places = fibonacci_lattice(length)
        return self._pointed(places, self.parts_of(places))

    def map_points(self):
        rows, columns = MAP
        north = 90 - (np.arange(rows) + 0.5) * 180 / rows
        east = (np.arange(columns) + 0.5) * 360 / columns - 180
        places = grid_points(north, east)[:, ::-1].astype(np.float64)
        return self._pointed(places), MAP
