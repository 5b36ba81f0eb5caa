"""Land and ocean that stand in for the earth's: a random field of low degree above a threshold,
with small round islands in its ocean. The class of a place is one of both, and interior, coast and
islands are told apart.
"""

import dataclasses
import functools
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int

from posenc_jax.lab.tasks.globe.globe_task import GlobeTask
from posenc_jax.lab.tasks.globe.sphere_points import (
    around,
    fibonacci_lattice,
    great_circle,
    random_places,
)
from posenc_jax.protocol.bounds import Ge, Gt, Le
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

REGIONS = ('interior', 'coast', 'islands')
_DIRECTIONS = 24  # between two of them a straight coast is missed by at most a hundredth
_EVEN = 20_000  # places by which the share of land is measured
_AT_ONCE = 2**16  # places whose harmonics are held at a time


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no one truth of equality
class Land:
    """Where land is.

    Attributes:
      coefficients: of the field, in the columns of `harmonics`.
      threshold: continents are where the field is above it.
      centres: of the islands, (longitude, latitude) in degrees.
      radii: of the islands, in degrees of arc.
    """

    coefficients: Float[np.ndarray, 'L2']
    threshold: float
    centres: Float[np.ndarray, 'islands 2']
    radii: Float[np.ndarray, 'islands']


def harmonics(places: Float[np.ndarray, 'N 2'], degrees: int) -> Float[np.ndarray, 'N L2']:
    """The real spherical harmonics of `coordinates.geo.geo_sh`, in float64 on the host. Column `l^2
    + l + m` has degree l = 0 .. degrees - 1 and order m = -l .. l.
    """
    t, p = np.radians(places[:, 1] + 90), np.radians(places[:, 0] + 180)
    x, s = np.cos(t), np.sin(t)
    out = np.empty((degrees**2, len(places)))
    diagonal = np.full_like(x, (4 * np.pi) ** -0.5)
    for m in range(degrees):
        diagonal = diagonal * s * np.sqrt((2 * m + 1) / (2 * m)) if m else diagonal
        before, legendre = np.zeros_like(x), diagonal
        for l in range(m, degrees):
            if l > m:
                a = np.sqrt((4 * l**2 - 1) / (l**2 - m**2))
                b = np.sqrt(((l - 1) ** 2 - m**2) / (4 * (l - 1) ** 2 - 1))
                before, legendre = legendre, a * (x * legendre - b * before)
            column = l * l + l
            if m:
                out[column + m] = 2**0.5 * np.cos(m * p) * legendre
                out[column - m] = 2**0.5 * np.sin(m * p) * legendre
            else:
                out[column] = legendre
    return out.T


def field(
    coefficients: Float[np.ndarray, 'L2'], places: Float[np.ndarray, 'N 2']
) -> Float[np.ndarray, 'N']:
    """The sum of the harmonics with these coefficients."""
    degrees = round(len(coefficients) ** 0.5)
    blocks = [places[i : i + _AT_ONCE] for i in range(0, len(places), _AT_ONCE)]
    values = [harmonics(block, degrees) @ coefficients for block in blocks]
    return np.concatenate(values) if values else np.zeros(0)


def draw_land(
    rng: np.random.Generator,
    *,
    highest: int = 8,
    percentile: float = 71.0,
    islands: int = 30,
    radius: tuple[float, float] = (2.0, 4.0),
) -> Land:
    """Draws the coefficients of the field, N(0, (1 + l)^-2) for l <= `highest`, and the islands.

    An island has a centre that is drawn evenly and is accepted where the disc touches neither a
    continent nor another island, and a radius that is drawn evenly.

    Args:
      percentile: how much of the area is ocean, before islands are added.
      radius: the smallest and the largest radius of an island, in degrees of arc.

    Raises:
      ValueError: a percentile outside 0 .. 100, a negative degree or number of islands, radii that
        are not in increasing order between 0 and 90, or no room for the islands.
    """
    if highest < 0 or islands < 0:
        raise ValueError(
            f'draw_land takes a degree and a number of islands of at least 0, got {highest} and '
            f'{islands}'
        )
    if not 0 <= percentile <= 100:
        raise ValueError(f'draw_land percentile must lie in 0 .. 100, got {percentile}')
    if not 0 < radius[0] <= radius[1] <= 90:
        raise ValueError(f'draw_land radius must increase within 0 .. 90 degrees, got {radius}')
    degree = np.sqrt(np.arange((highest + 1) ** 2)).astype(int)
    coefficients = rng.normal(size=len(degree)) / (1 + degree)
    threshold = float(np.percentile(field(coefficients, fibonacci_lattice(_EVEN)), percentile))
    centres, radii = np.zeros((0, 2)), np.zeros(0)
    for tries in range(200 * islands):
        if len(centres) == islands:
            break
        place, size = random_places(rng, 1), rng.uniform(*radius, size=1)
        edge = around(place[0], size[0], _DIRECTIONS)
        apart = great_circle(centres, place) > radii + size
        if apart.all() and (field(coefficients, np.concatenate([place, edge])) <= threshold).all():
            centres, radii = np.concatenate([centres, place]), np.concatenate([radii, size])
    if len(centres) < islands:
        raise ValueError(
            f'draw_land found room for {len(centres)} of {islands} islands with radii of '
            f'{radius[0]} .. {radius[1]} degrees; take fewer or smaller ones'
        )
    return Land(coefficients, threshold, centres, radii)


def from_island(land: Land, places: Float[np.ndarray, 'N 2']) -> Float[np.ndarray, 'N']:
    """The distance to the edge of the nearest island in degrees of arc, negative inside; infinite
    if there are none.
    """
    distances = [great_circle(places, c) - r for c, r in zip(land.centres, land.radii)]
    return np.min(distances, axis=0) if distances else np.full(len(places), np.inf)


def on_island(land: Land, places: Float[np.ndarray, 'N 2']) -> Bool[np.ndarray, 'N']:
    """Whether places lie on an island."""
    return from_island(land, places) <= 0


def is_land(land: Land, places: Float[np.ndarray, 'N 2']) -> Bool[np.ndarray, 'N']:
    """Whether places lie on a continent or an island."""
    return (field(land.coefficients, places) > land.threshold) | on_island(land, places)


def regions(
    land: Land, places: Float[np.ndarray, 'N 2'], coast: float = 3.0
) -> Int[np.ndarray, 'N']:
    """The region of each place, a number of `REGIONS`: 2 on an island; 1 on the coast, closer than
    `coast` degrees of arc (up to 90) to a boundary of a continent or an island; 0 in the interior
    of land or ocean.

    Whether a boundary of a continent is that close is seen by 24 directions at the whole distance
    and at half of it. The fields of `draw_land` are smooth enough for that.
    """
    if not 0 < coast <= 90:
        raise ValueError(f'regions coast must lie in 0 .. 90 degrees, got {coast}')
    above = lambda p: field(land.coefficients, p.reshape(-1, 2)) > land.threshold
    here, near = above(places), np.zeros(len(places), bool)
    for distance in (coast / 2, coast):
        ring = above(around(places, distance, _DIRECTIONS)).reshape(len(places), _DIRECTIONS)
        near |= (ring != here[:, None]).any(-1)
    edge = from_island(land, places)
    return np.where(edge <= 0, 2, np.where(near | (edge < coast), 1, 0))


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
