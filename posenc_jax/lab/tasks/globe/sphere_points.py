"""Places on the globe: lattices and random places, great-circle distances, and the nearest of some
places, in float64 on the host.
"""

import numpy as np
from jaxtyping import Float, Int

GOLDEN = (1 + 5**0.5) / 2
_AT_ONCE = 2**22  # inner products that are held at a time


def fibonacci_lattice(points: int) -> Float[np.ndarray, 'M 2']:
    """M places spread evenly: for i = -M/2 .. M/2 - 1, `lat = asin(2i / (M + 1))` and `lon = 360 (i
    mod g) / g`, g the golden ratio, with longitudes in [-180, 180]. ValueError for M that is odd or
    below 2.
    """
    if points < 2 or points % 2:
        raise ValueError(
            f'fibonacci_lattice takes an even number of points, at least 2, got {points}; nearest: '
            f'{max(points + points % 2, 2)}'
        )
    i = np.arange(-points // 2, points // 2)
    lon = np.mod(i, GOLDEN) * (360 / GOLDEN)
    lat = np.degrees(np.arcsin(2 * i / (points + 1)))
    return np.stack([np.where(lon > 180, lon - 360, lon), lat], axis=-1)


def random_places(rng: np.random.Generator, count: int) -> Float[np.ndarray, 'N 2']:
    """Places of the same density everywhere: the directions of normal vectors."""
    return places_of(rng.normal(size=(count, 3)))


def unit_vectors(places: Float[np.ndarray, '... 2']) -> Float[np.ndarray, '... 3']:
    """`[cos lon cos lat, sin lon cos lat, sin lat]`."""
    lon, lat = np.moveaxis(np.radians(places), -1, 0)
    return np.stack([np.cos(lon) * np.cos(lat), np.sin(lon) * np.cos(lat), np.sin(lat)], axis=-1)


def places_of(vectors: Float[np.ndarray, '... 3']) -> Float[np.ndarray, '... 2']:
    """The places in the directions of vectors of any length but 0."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.degrees(np.stack([np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))], axis=-1))


def great_circle(
    one: Float[np.ndarray, '... 2'], other: Float[np.ndarray, '... 2']
) -> Float[np.ndarray, '...']:
    """Distances of places along the sphere, in degrees of arc, exact also near 0 and 180."""
    a, b = np.broadcast_arrays(unit_vectors(one), unit_vectors(other))
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)))


def nearest(
    places: Float[np.ndarray, 'N 2'], support: Float[np.ndarray, 'M 2']
) -> Int[np.ndarray, 'N']:
    """The number of the support point that is nearest to each place along the sphere."""
    if not len(support):
        raise ValueError('nearest needs at least 1 support point, got 0')
    vectors, others = unit_vectors(places), unit_vectors(support)
    rows = max(1, _AT_ONCE // len(support))
    blocks = [vectors[i : i + rows] for i in range(0, len(vectors), rows)]
    found = [(block @ others.T).argmax(-1) for block in blocks]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def mean_spacing(places: Float[np.ndarray, 'M 2']) -> float:
    """The mean distance of a place to its nearest neighbour, in degrees of arc."""
    if len(places) < 2:
        raise ValueError(f'mean_spacing needs at least 2 places, got {len(places)}')
    vectors, own = unit_vectors(places), np.arange(len(places))
    rows = max(1, _AT_ONCE // len(places))
    other = np.empty(len(places), np.int64)
    for begin in range(0, len(places), rows):
        near = vectors[begin : begin + rows] @ vectors.T
        near[np.arange(len(near)), own[begin : begin + rows]] = -2.0
        other[begin : begin + rows] = near.argmax(-1)
    return float(great_circle(places, places[other]).mean())


def around(
    places: Float[np.ndarray, '... 2'], distance: float, directions: int
) -> Float[np.ndarray, '... directions 2']:
    """Places at one distance in degrees of arc from each place, in equally spaced directions, the
    first one north.
    """
    lon, lat = np.moveaxis(np.radians(places), -1, 0)
    up = np.stack([-np.cos(lon) * np.sin(lat), -np.sin(lon) * np.sin(lat), np.cos(lat)], axis=-1)
    east = np.stack([-np.sin(lon), np.cos(lon), np.zeros_like(lon)], axis=-1)
    bearing = 2 * np.pi * np.arange(directions)[:, None] / directions
    step = np.cos(bearing) * up[..., None, :] + np.sin(bearing) * east[..., None, :]
    r = np.radians(distance)
    return places_of(np.cos(r) * unit_vectors(places)[..., None, :] + np.sin(r) * step)
