"""Three directions of the map at several scales: values by hand, and their symmetry."""

import jax.numpy as jnp
import numpy as np

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.geo.geo_theory import theory
from posenc_jax.features.coordinates.geo.multi_scale import radii
from tests.golden_files import golden

GOLDEN = golden('geo_theory')['values']
PLACES = jnp.array(GOLDEN['places'])
SCALES = 'scales={scales}, rmin={rmin}, rmax={rmax}'.format(**GOLDEN)


def test_golden_features():
    found = make_features(f'geo_theory({SCALES})').encode(PLACES)
    np.testing.assert_allclose(found, GOLDEN['features'], atol=1e-6)


def test_the_map_may_be_shifted():
    a, b = PLACES
    shift, tau = jnp.array([-20.0, 15.0]), radii(16)
    product = theory(a, tau) @ theory(b, tau)
    np.testing.assert_allclose(theory(a + shift, tau) @ theory(b + shift, tau), product, atol=1e-5)


def test_a_turn_of_the_map_by_120_degrees_permutes_the_directions():
    place, tau = np.array([30.0, -12.0]), np.array([25.0])
    c, s = -0.5, 3**0.5 / 2
    turned = np.array([[c, s], [-s, c]]) @ place
    found = theory(jnp.array(turned), tau).reshape(3, 2)
    np.testing.assert_allclose(
        found, np.roll(theory(jnp.array(place), tau).reshape(3, 2), -1, 0), atol=1e-5
    )
