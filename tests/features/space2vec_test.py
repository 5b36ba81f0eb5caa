"""Sines and cosines at several scales: values by hand, radii, shifts and turns of the map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.geo.multi_scale import geo_radii
from tests.golden_files import golden

KEYS = ('geo_grid', 'geo_theory')
GOLDEN = {key: golden(key)['values'] for key in KEYS}
PLACES = jnp.array(GOLDEN['geo_grid']['places'])
every_key = pytest.mark.parametrize('key', KEYS)


@every_key
def test_golden_features(key):
    spec = f'{key}(scales={{scales}}, rmin={{rmin}}, rmax={{rmax}})'.format(**GOLDEN[key])
    found = make_features(spec).encode(jnp.array(GOLDEN[key]['places']))
    np.testing.assert_allclose(found, GOLDEN[key]['features'], atol=1e-6)


@every_key
def test_the_map_may_be_shifted(key):
    """Inner products see differences of coordinates alone."""
    encode = make_features(f'{key}(scales=16)').encode
    one, other = encode(PLACES)
    moved, also = encode(PLACES + jnp.array([-20.0, 15.0]))
    np.testing.assert_allclose(moved @ also, one @ other, atol=1e-5)
    if key == 'geo_grid':
        gaps = np.asarray(PLACES[0] - PLACES[1], np.float64)[:, None] / geo_radii(16)
        np.testing.assert_allclose(one @ other, np.cos(gaps).sum(), atol=1e-5)


def test_a_turn_of_the_map_by_120_degrees_permutes_the_directions():
    encode = jax.jit(make_features('geo_theory(scales=1, rmin=25.0)').encode)
    place, (c, s) = np.array([30.0, -12.0]), (-0.5, 3**0.5 / 2)
    found, before = (
        encode(jnp.array(at)).reshape(3, 2) for at in (np.array([[c, s], [-s, c]]) @ place, place)
    )
    np.testing.assert_allclose(found, np.roll(before, -1, 0), atol=1e-5)


def test_radii_are_geometric():
    tau = geo_radii(5, 0.5, 8.0)
    np.testing.assert_allclose(tau, [0.5, 1, 2, 4, 8], rtol=1e-12)
    assert geo_radii(1, 3.0, 3.0).tolist() == [3.0]


def test_fine_scales_are_exact():
    """Where a product of float32 numbers would be off by 0.1 radians."""
    place = np.array([123.4375, -67.03125])  # exact in float32
    found = make_features('geo_grid(scales=1, rmin=2e-5)').encode(jnp.array(place))
    angles = place / 2e-5
    by_hand = np.stack([np.sin(angles), np.cos(angles)], axis=-1).ravel()
    np.testing.assert_allclose(found, by_hand, atol=5e-3)
