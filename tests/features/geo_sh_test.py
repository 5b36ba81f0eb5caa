"""Spherical harmonics: values by hand, scipy's functions up to degree 127, the addition theorem,
and the poles.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import sph_harm_y

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.geo.geo_sh import geo_sh_harmonics, legendre_tables
from tests.golden_files import golden

GOLDEN = golden('geo_sh')['values']
harmonics = functools.partial(jax.jit, static_argnums=1)(geo_sh_harmonics)


def places(count, seed=0):
    """Places spread evenly, and as many that crowd at the poles; (longitude, latitude), float32."""
    rng = np.random.default_rng(seed)
    even = np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    polar = (90 - 10 ** rng.uniform(-3, 1, count)) * rng.choice([-1, 1], count)
    lat = np.concatenate([even, polar])
    return np.stack([rng.uniform(-180, 180, 2 * count), lat], axis=-1).astype(np.float32)


def by_scipy(coords, degrees):
    """The real harmonics from scipy's complex ones, in float64, at colatitude lat + 90 and azimuth
    lon + 180; scipy's include the Condon-Shortley phase, which the factor (-1)^m takes off.
    """
    lon, lat = np.asarray(coords, np.float64).T
    columns = []
    for l in range(degrees):
        m = np.arange(-l, l + 1)[:, None]
        value = sph_harm_y(l, np.abs(m), np.radians(lat + 90), np.radians(lon + 180))
        real = np.where(m < 0, value.imag, value.real) * np.where(m == 0, 1, 2**0.5)
        columns.append(real * (-1.0) ** m)
    return np.concatenate(columns).T


def test_golden_features():
    encoder = make_features(f'geo_sh(degrees={GOLDEN["degrees"]})')
    found = encoder.encode(jnp.array(GOLDEN['places']))
    np.testing.assert_allclose(found, GOLDEN['features'], atol=5.1e-5)
    pole = np.asarray(encoder.encode(jnp.array([[33.0, 90.0], [-120.0, 90.0]])))
    np.testing.assert_allclose(pole[:, [0, 2, 6]], [GOLDEN['north_pole']] * 2, atol=5.1e-5)
    assert (np.delete(pole, [0, 2, 6], axis=-1) == 0).all()


def test_the_sum_of_the_squares_of_a_degree():
    found = np.asarray(harmonics(places(50), 40), np.float64) ** 2
    sums = np.add.reduceat(found, np.arange(40) ** 2, axis=-1)
    np.testing.assert_allclose(sums[:, :3], [GOLDEN['squares']] * 100, atol=1e-6)
    np.testing.assert_allclose(sums / ((2 * np.arange(40) + 1) / (4 * np.pi)), 1, atol=1e-5)


@pytest.mark.full_where(condition=lambda degrees, error: degrees > 40)
@pytest.mark.parametrize('degrees, error', [(10, 1e-6), (20, 2e-6), (40, 6e-6), (128, 2e-5)])
def test_scipy_agrees(degrees, error):
    coords = places(60)
    found = harmonics(coords, degrees)
    assert found.dtype == jnp.float32 and found.shape == (120, degrees**2)
    np.testing.assert_allclose(found, by_scipy(coords, degrees), atol=error)


def test_the_phase_is_a_sign_of_odd_orders():
    coords = places(5)
    with_phase = make_features('geo_sh(degrees=4, condon_shortley=True)').encode(coords)
    m = np.concatenate([np.arange(-l, l + 1) for l in range(4)])
    np.testing.assert_allclose(with_phase, harmonics(coords, 4) * (-1.0) ** m, atol=1e-6)


def test_gradients_are_right_at_the_poles_and_the_equator():
    """Against differences of scipy's functions; across a pole lies the opposite meridian."""

    def along(lat):
        over = np.abs(lat) > 90
        lon = coords[:, 0] + np.where(over, 180, 0)
        return by_scipy(np.stack([lon, np.where(over, np.sign(lat) * 180 - lat, lat)], -1), 10)

    coords = np.array([[10.0, 90.0], [10.0, -90.0], [-60.0, 0.0], [25.0, 40.0]])
    _, slope = jax.jvp(lambda c: harmonics(c, 10), (coords,), (np.array([[0.0, 1.0]] * 4),))
    differences = (along(coords[:, 1] + 1e-4) - along(coords[:, 1] - 1e-4)) / 2e-4
    np.testing.assert_allclose(slope, differences, atol=2e-6)


def test_tables_are_the_derivatives_at_the_pole():
    alpha, beta, kappa = legendre_tables(6)
    assert (alpha[np.triu_indices(6)] == 0).all() and (kappa[np.triu_indices(6, 1)] == 0).all()
    np.testing.assert_allclose(kappa[:, 0], np.sqrt((2 * np.arange(6) + 1) / (4 * np.pi)))
    np.testing.assert_allclose((alpha - beta)[np.tril_indices(6, -1)], 1)
