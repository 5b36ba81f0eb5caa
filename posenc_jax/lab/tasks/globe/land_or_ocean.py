"""Land or ocean as the class of a place, with interior, coast and islands told apart."""

import dataclasses
import functools
from typing import Annotated

import numpy as np

from posenc_jax.lab.tasks.globe.globe_task import GlobeTask
from posenc_jax.lab.tasks.globe.land import REGIONS, Land, draw_land, is_land, regions
from posenc_jax.protocol.bounds import Ge, Gt, Le
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register


@register('land', kind='task')
@dataclasses.dataclass(frozen=True)
class LandOrOcean(GlobeTask):
    """Whether a place is land (1) or ocean (0), on a random globe that stands in for the earth.

    Continents are where a random sum of spherical harmonics is large, and there are small round
    islands in the ocean, see `draw_land`. Evaluation measures the interior of land and ocean, the
    coast and the islands on their own (`regions`), beside the poles: what is small and rare is
    easily lost in the accuracy over all places.

    The task length is the number of places of the lattice that evaluation reads. `GlobeTask` has
    further arguments.

    Args:
      globe: seed of the field and the islands.
      degree: the highest degree of the field.
      islands: how many.
      coast: how far it reaches from a boundary, in degrees of arc.

    Raises:
      SpecError: no room for the islands.
      ValueError: at call, a length that is odd.

    Reference: the regions follow FAIR-Earth in spirit; the globe is of this package.

    Example:
      >>> task = LandOrOcean(degree=4, islands=5, samples=100)
      >>> task.sample(np.random.default_rng(0), 5, 200)['targets'].shape
      (5,)
      >>> sorted(set(task.evaluation_points(200).parts) - {'', 'islands'})
      ['below_60', 'coast', 'interior', 'poles']
    """

    globe: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    degree: Annotated[int, Ge(0), Le(40)] = 8
    islands: Annotated[int, Ge(0), Le(200)] = 30
    coast: Annotated[float, Gt(0), Le(90)] = 3.0

    @functools.cached_property
    def land(self) -> Land:
        """The continents and the islands."""
        try:
            rng = np.random.default_rng(self.globe)
            return draw_land(rng, highest=self.degree, islands=self.islands)
        except ValueError as error:
            raise SpecError(f'land globe={self.globe}, islands={self.islands}: {error}') from error

    output_size = 2

    def classes_of(self, places):
        return is_land(self.land, places)

    def parts_of(self, places):
        region = regions(self.land, places, self.coast)
        own = {name: region == number for number, name in enumerate(REGIONS)}
        return super().parts_of(places) | own
