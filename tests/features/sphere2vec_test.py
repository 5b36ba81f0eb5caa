"""Points of the sphere at several scales: values by hand in both units, and the sphere itself."""

import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.features.coordinates import make_features
from tests.golden_files import golden

KEYS = ('geo_spherec', 'geo_spherecplus', 'geo_spherem', 'geo_spheremplus', 'geo_dfs')
GOLDEN = {key: golden(key)['values'] for key in KEYS}
PLACES = jnp.array(GOLDEN['geo_spherec']['places'])
UNITS = ('deg_as_rad', 'rad')


def code(key, further='', **sizes):
    """The features of the places at the golden scales, or at others."""
    scales = {**{name: GOLDEN['geo_spherec'][name] for name in ('scales', 'rmin', 'rmax')}, **sizes}
    given = ', '.join(f'{name}={value!r}' for name, value in scales.items())
    return np.asarray(make_features(f'{key}({given}{further})').encode(PLACES))


@pytest.mark.parametrize(
    'key, unit',
    [*((key, '') for key in KEYS if 'spherem' not in key)]
    + [(key, unit) for key in KEYS if 'spherem' in key for unit in UNITS],
)
def test_golden_features(key, unit):
    values = GOLDEN[key]
    assert values['places'] == GOLDEN['geo_spherec']['places']
    sizes = {name: values[name] for name in ('scales', 'rmin', 'rmax')}
    found = code(key, f', single_scale_unit={unit!r}' if unit else '', **sizes)
    np.testing.assert_allclose(found, values[unit or 'features'], atol=1e-6)


def test_one_radius_of_a_radian_is_the_sphere():
    x, y, z = np.moveaxis(np.asarray(make_features('geo_cartesian3d()').encode(PLACES)), -1, 0)
    radian = dict(scales=1, rmin=180 / np.pi, rmax=180 / np.pi)
    np.testing.assert_allclose(code('geo_spherec', **radian), np.stack([z, x, y], -1), atol=1e-6)
    found = code('geo_spherem', ", single_scale_unit='rad'", **radian)
    np.testing.assert_allclose(found, np.stack([z, x, x, y, y], -1), atol=1e-6)


@pytest.mark.parametrize('key', [key for key in KEYS if key != 'geo_dfs'])
def test_the_released_code_writes_every_feature_twice(key):
    once, twice = code(key, ', dedup=True'), code(key, ', dedup=False')
    np.testing.assert_array_equal(twice, np.repeat(once, 2, axis=-1))
    assert make_features(f'{key}(dedup=False)').width == 2 * make_features(f'{key}()').width
