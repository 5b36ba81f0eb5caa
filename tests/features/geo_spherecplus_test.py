"""Points of the sphere and their waves at several scales: values by hand, and their parts."""

import jax.numpy as jnp
import numpy as np

from posenc_jax.features.coordinates import make_features
from tests.golden_files import golden

GOLDEN = golden('geo_spherecplus')['values']
PLACES = jnp.array(GOLDEN['places'])
SCALES = 'scales={scales}, rmin={rmin}, rmax={rmax}'.format(**GOLDEN)


def test_golden_features():
    found = make_features(f'geo_spherecplus({SCALES})').encode(PLACES)
    np.testing.assert_allclose(found, GOLDEN['features'], atol=1e-6)


def test_it_is_made_of_the_sphere_and_the_grid():
    code = lambda key: np.asarray(make_features(f'{key}({SCALES})').encode(PLACES))
    found = code('geo_spherecplus').reshape(2, 3, 6)
    np.testing.assert_array_equal(found[..., [0, 4, 5]].reshape(2, -1), code('geo_spherec'))
    lon, lat = np.split(code('geo_grid').reshape(2, 6, 2), 2, axis=1)
    np.testing.assert_array_equal(found[..., :4], np.concatenate([lat, lon], axis=-1))


def test_the_released_code_writes_every_feature_twice():
    once, twice = (
        make_features(f'geo_spherecplus({SCALES}, dedup={dedup})') for dedup in (True, False)
    )
    assert twice.width == 2 * once.width
    np.testing.assert_array_equal(twice.encode(PLACES), np.repeat(once.encode(PLACES), 2, axis=-1))
