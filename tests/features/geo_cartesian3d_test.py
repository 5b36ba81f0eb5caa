"""Points of the unit sphere: values by hand, great-circle distances, and turns of the globe."""

import jax.numpy as jnp
import numpy as np

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.geo.geo_cartesian3d import cartesian3d
from tests.golden_files import golden

GOLDEN = golden('geo_cartesian3d')['values']
PLACES = jnp.array(GOLDEN['places'])


def test_golden_features():
    found = make_features('geo_cartesian3d()').encode(PLACES)
    np.testing.assert_allclose(found, GOLDEN['features'], atol=5e-7)


def test_inner_products_are_cosines_of_great_circle_distances():
    """Against the haversine formula, which does not pass through points of the sphere."""
    lon, lat = np.radians(GOLDEN['places']).T
    haversine = np.sin(np.diff(lat) / 2) ** 2 + np.cos(lat).prod() * np.sin(np.diff(lon) / 2) ** 2
    one, other = cartesian3d(PLACES)
    np.testing.assert_allclose(one @ other, 1 - 2 * haversine[0], atol=1e-6)
    np.testing.assert_allclose(one @ one, 1, atol=1e-6)


def test_a_turn_changes_nothing():
    np.testing.assert_allclose(
        cartesian3d(PLACES + jnp.array([360.0, 0])), cartesian3d(PLACES), atol=2e-6
    )
