"""Products and waves of scaled and unscaled coordinates: values by hand in both units, and their
parts.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.features.coordinates import make_features
from tests.golden_files import golden

GOLDEN = golden('geo_spheremplus')['values']
PLACES = jnp.array(GOLDEN['places'])
SCALES = 'scales={scales}, rmin={rmin}, rmax={rmax}'.format(**GOLDEN)


@pytest.mark.parametrize('unit', ['deg_as_rad', 'rad'])
def test_golden_features(unit):
    found = make_features(f'geo_spheremplus({SCALES}, single_scale_unit={unit!r})').encode(PLACES)
    np.testing.assert_allclose(found, GOLDEN[unit], atol=1e-6)


def test_it_is_made_of_the_products_and_the_grid():
    code = lambda key: np.asarray(make_features(f'{key}({SCALES})').encode(PLACES))
    found = code('geo_spheremplus').reshape(2, 3, 8)
    np.testing.assert_array_equal(found[..., [0, 4, 5, 6, 7]].reshape(2, -1), code('geo_spherem'))
    lon, lat = np.split(code('geo_grid').reshape(2, 6, 2), 2, axis=1)
    np.testing.assert_array_equal(found[..., :4], np.concatenate([lat, lon], axis=-1))


def test_the_released_code_writes_every_feature_twice():
    once, twice = (
        make_features(f'geo_spheremplus({SCALES}, dedup={dedup})') for dedup in (True, False)
    )
    assert twice.width == 2 * once.width
    np.testing.assert_array_equal(twice.encode(PLACES), np.repeat(once.encode(PLACES), 2, axis=-1))
