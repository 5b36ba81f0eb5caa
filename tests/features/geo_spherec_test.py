"""Points of the sphere at several scales: values by hand, and the sphere itself."""

import jax.numpy as jnp
import numpy as np

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.geo.geo_cartesian3d import cartesian3d
from posenc_jax.features.coordinates.geo.geo_spherec import spherec
from tests.golden_files import golden

GOLDEN = golden('geo_spherec')['values']
PLACES = jnp.array(GOLDEN['places'])
SCALES = 'scales={scales}, rmin={rmin}, rmax={rmax}'.format(**GOLDEN)


def test_golden_features():
    found = make_features(f'geo_spherec({SCALES})').encode(PLACES)
    np.testing.assert_allclose(found, GOLDEN['features'], atol=1e-6)


def test_one_radius_of_a_radian_is_the_sphere():
    z, x, y = np.moveaxis(np.asarray(spherec(PLACES, np.array([180 / np.pi]))), -1, 0)
    np.testing.assert_allclose(np.stack([x, y, z], -1), cartesian3d(PLACES), atol=1e-6)


def test_every_scale_is_a_point_of_the_sphere():
    code = np.asarray(make_features('geo_spherec()').encode(PLACES)).reshape(2, 16, 3)
    np.testing.assert_allclose((code**2).sum(-1), 1, atol=1e-6)


def test_the_released_code_writes_every_feature_twice():
    once, twice = (
        make_features(f'geo_spherec({SCALES}, dedup={dedup})') for dedup in (True, False)
    )
    assert twice.width == 2 * once.width
    np.testing.assert_array_equal(twice.encode(PLACES), np.repeat(once.encode(PLACES), 2, axis=-1))
