"""Data on the globe: the lattice and its labels by hand, distances by the haversine formula, land,
coasts and islands by a dense lattice, and refused arguments.
"""

import numpy as np
import pytest

from posenc_jax.features.coordinates.geo.geo_sh import geo_sh_harmonics
from posenc_jax.lab.tasks.globe import (
    Land,
    around,
    checkerboard,
    checkerboard_labels,
    draw_land,
    fibonacci_lattice,
    great_circle,
    is_land,
    mean_spacing,
    nearest,
    on_island,
    places_of,
    random_places,
    regions,
    unit_vectors,
)
from posenc_jax.lab.tasks.globe.land import field, from_island, harmonics


def haversine(one, other):
    """Great-circle distance in degrees by another formula than the package's."""
    (lon1, lat1), (lon2, lat2) = (np.moveaxis(np.radians(a), -1, 0) for a in (one, other))
    h = np.sin((lat2 - lat1) / 2) ** 2
    h = h + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(np.minimum(h, 1))))


def test_the_lattice_by_hand():
    lattice = fibonacci_lattice(20)
    np.testing.assert_allclose(lattice[0], [-64.9224, -72.2472], atol=5e-5)
    assert lattice[10].tolist() == [0, 0] and (np.abs(lattice) <= [180, 90]).all()
    np.testing.assert_allclose(np.sin(np.radians(lattice[:, 1])), np.arange(-10, 10) * 2 / 21)
    assert checkerboard_labels(20, 4)[:4].tolist() == [2, 3, 0, 1]
    assert np.bincount(checkerboard_labels(200, 16)).tolist() == [13] * 4 + [12] * 8 + [13] * 4


@pytest.mark.parametrize('points, spacing', [(200, 13.78), (20, 41.71)])
def test_the_spacing_of_the_lattice(points, spacing):
    lattice = fibonacci_lattice(points)
    assert mean_spacing(lattice) == pytest.approx(spacing, abs=5e-3)
    apart = haversine(lattice[:, None], lattice[None]) + 360 * np.eye(points)
    assert mean_spacing(lattice) == pytest.approx(apart.min(-1).mean(), abs=1e-6)


def test_places_have_the_label_of_the_nearest_point():
    places = random_places(np.random.default_rng(0), 500)
    labels = checkerboard(places, points=60, classes=7)
    support = fibonacci_lattice(60)
    closest = haversine(places[:, None], support[None]).argmin(-1)
    np.testing.assert_array_equal(nearest(places, support), closest)
    np.testing.assert_array_equal(labels, checkerboard_labels(60, 7)[closest])
    np.testing.assert_array_equal(checkerboard(support, 60, 7), checkerboard_labels(60, 7))
    assert nearest(np.zeros((0, 2)), support).shape == (0,)


def test_random_places_have_one_density():
    places = random_places(np.random.default_rng(1), 20_000)
    height = np.sin(np.radians(places[:, 1]))  # uniform, as of a cylinder around the globe
    np.testing.assert_allclose(np.histogram(height, 10, (-1, 1))[0], 2000, atol=200)
    np.testing.assert_allclose(np.histogram(places[:, 0], 10, (-180, 180))[0], 2000, atol=200)


def test_distances_and_directions():
    places = random_places(np.random.default_rng(2), 40)
    one, other = places[:20], places[20:]
    np.testing.assert_allclose(great_circle(one, other), haversine(one, other), atol=1e-6)
    np.testing.assert_allclose(places_of(3 * unit_vectors(places)), places, atol=1e-10)
    near, far = np.array([0.0, 1e-9]), np.array([180.0, 0.0])
    np.testing.assert_allclose(great_circle(near, np.zeros(2)), 1e-9, rtol=1e-6)
    np.testing.assert_allclose(great_circle(far, np.zeros(2)), 180)
    ring = around(places, 7.5, 6)
    np.testing.assert_allclose(great_circle(places[:, None], ring), 7.5, atol=1e-10)
    sides = great_circle(ring, np.roll(ring, 1, axis=1))
    np.testing.assert_allclose(sides, sides[0, 0], atol=1e-10)


def test_harmonics_are_orthonormal_and_those_of_the_encoder():
    x, weights = np.polynomial.legendre.leggauss(12)
    lon = np.arange(24) * 15.0 - 180
    places = np.stack(np.meshgrid(np.degrees(np.arcsin(x)), lon, indexing='ij')[::-1], axis=-1)
    found = harmonics(places.reshape(-1, 2), 10)
    weights = np.repeat(weights, 24) * np.radians(15)
    np.testing.assert_allclose(found.T @ (weights[:, None] * found), np.eye(100), atol=1e-10)
    places = random_places(np.random.default_rng(3), 20)
    encoded = geo_sh_harmonics(places.astype(np.float32), 9)
    np.testing.assert_allclose(harmonics(places, 9), encoded, atol=3e-6)


LAND = draw_land(np.random.default_rng(0))


def test_the_share_of_land():
    even = fibonacci_lattice(10_000)
    assert np.mean(field(LAND.coefficients, even) > LAND.threshold) == pytest.approx(0.29, abs=2e-3)
    added = np.mean(on_island(LAND, even))
    caps = ((1 - np.cos(np.radians(LAND.radii))) / 2).sum()  # their share of the sphere
    assert added == pytest.approx(caps, abs=2e-3)
    places = random_places(np.random.default_rng(1), 5000)
    assert is_land(LAND, places).mean() == pytest.approx(0.29 + caps, abs=0.03)


def test_islands_lie_apart_in_the_ocean():
    assert LAND.radii.shape == (30,) and LAND.radii.min() >= 2 and LAND.radii.max() <= 4
    apart = haversine(LAND.centres[:, None], LAND.centres[None])
    touch = LAND.radii[:, None] + LAND.radii
    assert (apart > touch)[~np.eye(30, dtype=bool)].all()
    for centre, radius in zip(LAND.centres, LAND.radii):
        inside = np.concatenate([around(centre, radius * part, 8) for part in (0.0, 0.5, 0.99)])
        assert (field(LAND.coefficients, inside) <= LAND.threshold).all()
        assert on_island(LAND, inside).all()
    first = np.where(np.arange(30) > 0, LAND.radii, 0)
    assert not on_island(
        Land(LAND.coefficients, LAND.threshold, LAND.centres, first), LAND.centres[:1] + [0.0, 0.1]
    )[0]


def test_coefficients_shrink_with_the_degree():
    """Their standard deviation is 1 / (1 + l)."""
    lands = [draw_land(np.random.default_rng(seed), islands=0) for seed in range(10)]
    l = np.repeat(np.arange(9), 2 * np.arange(9) + 1)
    draws = np.stack([land.coefficients for land in lands]) * (1 + l)
    assert draws[:, l < 5].std() == pytest.approx(1, abs=0.2)  # five standard errors
    assert draws[:, l >= 5].std() == pytest.approx(1, abs=0.2)


def test_regions_by_a_dense_lattice():
    """A place is on the coast if a place on the other side is closer than 3 degrees."""
    places = random_places(np.random.default_rng(4), 400)
    dense = fibonacci_lattice(40_000)  # spaced by about a degree
    land, other = is_land(LAND, places), is_land(LAND, dense)
    found = regions(LAND, places)
    to_other = np.array(
        [haversine(place, dense[other != here]).min() for place, here in zip(places, land)]
    )
    island = on_island(LAND, places)
    assert (found[island] == 2).all() and set(found.tolist()) == {0, 1, 2}
    assert (found[~island & (to_other < 2.95)] == 1).all()
    assert (found[~island & (to_other > 4.5)] == 0).all()
    np.testing.assert_array_equal(found == 2, island)


def test_land_of_one_seed_is_one_land():
    again = draw_land(np.random.default_rng(0))
    np.testing.assert_array_equal(again.coefficients, LAND.coefficients)
    np.testing.assert_array_equal(again.centres, LAND.centres)
    bare = draw_land(np.random.default_rng(0), islands=0)
    assert np.isinf(from_island(bare, np.zeros((2, 2)))).all()
    assert not on_island(bare, LAND.centres).any()


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: fibonacci_lattice(21), 'even number of points, at least 2, got 21; nearest: 22'),
        (lambda: fibonacci_lattice(0), 'got 0; nearest: 2'),
        (lambda: checkerboard_labels(20, 21), r'has 1 .. 20 classes, got 21'),
        (lambda: nearest(np.zeros((1, 2)), np.zeros((0, 2))), 'at least 1 support point, got 0'),
        (lambda: mean_spacing(np.zeros((1, 2))), 'at least 2 places, got 1'),
        (lambda: draw_land(np.random.default_rng(0), percentile=101), '0 .. 100, got 101'),
        (lambda: draw_land(np.random.default_rng(0), highest=-1), 'at least 0, got -1 and 30'),
        (lambda: draw_land(np.random.default_rng(0), radius=(4.0, 2.0)), r'got \(4.0, 2.0\)'),
        (lambda: draw_land(np.random.default_rng(0), percentile=0, islands=2), '0 of 2 islands'),
        (lambda: regions(LAND, np.zeros((1, 2)), coast=0.0), '0 .. 90 degrees, got 0.0'),
    ],
)
def test_wrong_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
