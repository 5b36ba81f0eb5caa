"""Land or ocean as the class of a place, with interior, coast and islands told apart."""

import dataclasses
import functools

import numpy as np

from posenc_jax.lab.tasks.globe.globe_task import GlobeTask
from posenc_jax.lab.tasks.globe.land import REGIONS, Land, draw_land, is_land, regions
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

MOST_DEGREE = 40
MOST_ISLANDS = 200


@register('land', kind='task')
@dataclasses.dataclass(frozen=True)
class LandOrOcean(GlobeTask):
    """Whether a place is land (1) or ocean (0), on a random globe that stands in for the earth.

    Continents are where a random sum of spherical harmonics is large, and there are small round
    islands in the ocean, see `draw_land`. Evaluation measures the interior of land and ocean, the
    coast and the islands on their own (`regions`), beside the poles: what is small and rare is
    easily lost in the accuracy over all places.

    The task length is the number of places of the lattice that evaluation reads, see `GlobeTask`.

    Args:
      globe: seed of the field and the islands.
      degree: the highest degree of the field.
      islands: how many.
      coast: how far it reaches from a boundary, in degrees of arc.
      samples: places of the training data, and as many of the validation data.
      seed: of the training places; the next one is that of the validation places.

    Raises:
      SpecError: an option out of its range, or no room for the islands.
      ValueError: at call, a length that is odd.

    Reference: the regions follow FAIR-Earth in spirit; the globe is of this package.

    Example:
      >>> task = LandOrOcean(degree=4, islands=5, samples=100)
      >>> task.sample(np.random.default_rng(0), 5, 200)['targets'].shape
      (5,)
      >>> sorted(set(task.evaluation_points(200).parts) - {'', 'islands'})
      ['below_60', 'coast', 'interior', 'poles']
    """

    globe: int = 0
    degree: int = 8
    islands: int = 30
    coast: float = 3.0
    samples: int = 10_000
    seed: int = 0

    def __post_init__(self):
        for name, value, most in (
            ('globe', self.globe, 2**32 - 1),
            ('degree', self.degree, MOST_DEGREE),
            ('islands', self.islands, MOST_ISLANDS),
        ):
            if not 0 <= value <= most:
                raise SpecError(f'land {name} must lie in 0 .. {most}, got {value}')
        if not 0 < self.coast <= 90:
            raise SpecError(f'land coast must lie in (0, 90] degrees of arc, got {self.coast}')
        self.check_samples('land')

    @functools.cached_property
    def land(self) -> Land:
        """The continents and the islands."""
        try:
            rng = np.random.default_rng(self.globe)
            return draw_land(rng, highest=self.degree, islands=self.islands)
        except ValueError as error:
            raise SpecError(f'land globe={self.globe}, islands={self.islands}: {error}') from error

    @property
    def output_size(self):
        return 2

    def classes_of(self, places):
        return is_land(self.land, places)

    def parts_of(self, places):
        region = regions(self.land, places, self.coast)
        own = {name: region == number for number, name in enumerate(REGIONS)}
        return super().parts_of(places) | own

    def for_evaluation(self):
        return dataclasses.replace(self, seed=self.seed + 1)
