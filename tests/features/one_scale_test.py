"""Places in radians, on circles and on the sphere: values by hand, great-circle distances, and
turns of the globe.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.features.coordinates import make_features
from tests.golden_files import golden

KEYS = ('geo_direct', 'geo_wrap', 'geo_cartesian3d')
GOLDEN = {key: golden(key)['values'] for key in KEYS}
PLACES = jnp.array(GOLDEN['geo_cartesian3d']['places'])


@pytest.mark.parametrize('key', KEYS)
def test_golden_features(key):
    found = make_features(f'{key}()').encode(jnp.array(GOLDEN[key]['places']))
    np.testing.assert_allclose(found, GOLDEN[key]['features'], atol=5e-7)


@pytest.mark.parametrize('key', ['geo_wrap', 'geo_cartesian3d'])
def test_a_turn_changes_nothing(key):
    encode = jax.jit(make_features(f'{key}()').encode)  # which knows no values to refuse
    np.testing.assert_allclose(encode(PLACES + jnp.array([360.0, 0])), encode(PLACES), atol=3e-6)


def test_inner_products_are_cosines_of_great_circle_distances():
    """Against the haversine formula, which does not pass through points of the sphere."""
    lon, lat = np.radians(np.asarray(PLACES, np.float64)).T
    haversine = np.sin(np.diff(lat) / 2) ** 2 + np.cos(lat).prod() * np.sin(np.diff(lon) / 2) ** 2
    one, other = make_features('geo_cartesian3d()').encode(PLACES)
    np.testing.assert_allclose(one @ other, 1 - 2 * haversine[0], atol=1e-6)
    np.testing.assert_allclose(one @ one, 1, atol=1e-6)
