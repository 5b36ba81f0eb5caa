"""Sines and cosines at several scales: values by hand, radii, shifts of the map, and refused
arguments.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.geo.geo_grid import grid
from posenc_jax.features.coordinates.geo.multi_scale import radii
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('geo_grid')['values']
PLACES = jnp.array(GOLDEN['places'])
SCALES = 'scales={scales}, rmin={rmin}, rmax={rmax}'.format(**GOLDEN)


def test_golden_features():
    found = make_features(f'geo_grid({SCALES})').encode(PLACES)
    np.testing.assert_allclose(found, GOLDEN['features'], atol=1e-6)


def test_inner_products_see_differences_of_coordinates_alone():
    a, b = PLACES
    shift = jnp.array([-20.0, 15.0])
    tau = radii(16)
    product = grid(a, tau) @ grid(b, tau)
    np.testing.assert_allclose(grid(a + shift, tau) @ grid(b + shift, tau), product, atol=1e-5)
    gaps = np.asarray(a - b, np.float64)[:, None] / tau
    np.testing.assert_allclose(product, np.cos(gaps).sum(), atol=1e-5)


def test_radii_are_geometric():
    tau = radii(5, 0.5, 8.0)
    np.testing.assert_allclose(tau, [0.5, 1, 2, 4, 8], rtol=1e-12)
    assert radii(1, 3.0, 3.0).tolist() == [3.0]


def test_fine_scales_are_exact():
    """Where a product of float32 numbers would be off by 0.1 radians."""
    place = np.array([123.4375, -67.03125])  # exact in float32
    found = grid(jnp.array(place), np.array([2e-5]))
    angles = place / 2e-5
    by_hand = np.stack([np.sin(angles), np.cos(angles)], axis=-1).ravel()
    np.testing.assert_allclose(found, by_hand, atol=5e-3)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ('scales=0', 'scales must be at least 1, got 0'),
        ('scales=300000', 'scales=300000 give 1200000 features; at most 1048576'),
        ('rmin=0.0', 'rmin must be positive, got 0.0'),
        ('rmin=1e-7', 'rmin must be at least 1e-06, got 1e-07'),
        ('rmin=10.0, rmax=1.0', 'rmax must be at least 10.0, got 1.0'),
    ],
)
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(SpecError, match=message):
        make_features(f'geo_grid({arguments})')
