"""Both coordinates on circles: values by hand, and turns of the globe."""

import jax.numpy as jnp
import numpy as np

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.geo.geo_wrap import wrap
from tests.golden_files import golden

GOLDEN = golden('geo_wrap')['values']
PLACES = jnp.array(GOLDEN['places'])


def test_golden_features():
    found = make_features('geo_wrap()').encode(PLACES)
    np.testing.assert_allclose(found, GOLDEN['features'], atol=5e-7)


def test_a_turn_changes_nothing():
    np.testing.assert_allclose(wrap(PLACES + jnp.array([360.0, -360.0])), wrap(PLACES), atol=3e-6)


def test_the_poles_still_have_longitudes():
    """What the point of the sphere does not have: a pole is a whole circle of features."""
    one, other = make_features('geo_wrap()').encode(jnp.array([[0.0, 90.0], [90.0, 90.0]]))
    np.testing.assert_allclose(one[2:], other[2:])
    np.testing.assert_allclose(np.linalg.norm(one - other), 2**0.5, rtol=1e-6)
