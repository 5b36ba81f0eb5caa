"""Radians less pi: values by hand, and the seam of the map."""

import jax.numpy as jnp
import numpy as np

from posenc_jax.features.coordinates import make_features
from tests.golden_files import golden

GOLDEN = golden('geo_direct')['values']
PLACES = jnp.array(GOLDEN['places'])


def test_golden_features():
    found = make_features('geo_direct()').encode(PLACES)
    np.testing.assert_allclose(found, GOLDEN['features'], atol=5e-7)


def test_the_two_sides_of_the_seam_are_a_turn_apart():
    west, east = make_features('geo_direct()').encode(jnp.array([[-180.0, 12.0], [180.0, 12.0]]))
    np.testing.assert_allclose(east - west, [2 * np.pi, 0], atol=1e-6)
