"""Products of scaled and unscaled coordinates: values by hand in both units, and the sphere."""

import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.geo.geo_cartesian3d import cartesian3d
from posenc_jax.features.coordinates.geo.geo_spherem import spherem
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('geo_spherem')['values']
PLACES = jnp.array(GOLDEN['places'])
SCALES = 'scales={scales}, rmin={rmin}, rmax={rmax}'.format(**GOLDEN)


@pytest.mark.parametrize('unit', ['deg_as_rad', 'rad'])
def test_golden_features(unit):
    found = make_features(f'geo_spherem({SCALES}, single_scale_unit={unit!r})').encode(PLACES)
    np.testing.assert_allclose(found, GOLDEN[unit], atol=1e-6)


def test_one_radius_of_a_radian_is_the_sphere():
    code = np.asarray(spherem(PLACES, np.array([180 / np.pi]), 'rad'))
    x, y, z = np.moveaxis(np.asarray(cartesian3d(PLACES)), -1, 0)
    np.testing.assert_allclose(code, np.stack([z, x, x, y, y], -1), atol=1e-6)


def test_another_unit_is_refused():
    with pytest.raises(SpecError, match="did you mean 'rad'"):
        make_features("geo_spherem(single_scale_unit='radian')")


def test_the_released_code_writes_every_feature_twice():
    once, twice = (
        make_features(f'geo_spherem({SCALES}, dedup={dedup})') for dedup in (True, False)
    )
    assert twice.width == 2 * once.width
    np.testing.assert_array_equal(twice.encode(PLACES), np.repeat(once.encode(PLACES), 2, axis=-1))
