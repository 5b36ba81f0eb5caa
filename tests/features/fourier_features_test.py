"""Fourier features: bands by hand, exact high bands, and the kernel of random waves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.features.coordinates import fourier_features as module
from posenc_jax.features.coordinates import make_features
from tests.golden_files import golden

GOLDEN = golden('fourier_features')['values']


def test_golden_bands():
    found = make_features('fourier_features(bands=2)').encode(jnp.array(GOLDEN['point']))
    np.testing.assert_allclose(found, GOLDEN['two_bands'], atol=1e-6)


def test_golden_sizes():
    bands = module.fourier_features_bands(GOLDEN['samples'])
    assert bands == GOLDEN['bands'] == module.fourier_features_bands(127)
    assert make_features(f'fourier_features(bands={bands})').width == GOLDEN['size']
    assert make_features('fourier_features(components=3)').width == 3 + 2 * 3 * 10
    assert make_features('fourier_features(bands=0)').encode(jnp.ones(2)).tolist() == [1, 1]


def test_high_bands_are_exact_and_have_the_period_two():
    x = np.array([0.3, -0.71, 1.0], np.float32)
    found = np.asarray(module.fourier_features_nerf(jnp.array(x), 20)[3:]).reshape(20, 3, 2)
    turns = np.float64(x) * 2.0 ** np.arange(-1, 19)[:, None]
    by_hand = [np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns)]
    np.testing.assert_allclose(found, np.stack(by_hand, axis=-1), atol=1e-6)
    exact = jnp.array([0.25, -0.75])
    np.testing.assert_allclose(
        module.fourier_features_nerf(exact + 2, 8)[2:], module.fourier_features_nerf(exact, 8)[2:]
    )


def test_slopes_double_from_band_to_band():
    slope = jax.jacobian(lambda x: module.fourier_features_nerf(x, 6))(jnp.zeros(1))
    np.testing.assert_allclose(slope[1::2, 0], np.pi * 2.0 ** np.arange(6), rtol=1e-6)
    np.testing.assert_allclose(slope[2::2, 0], 0)


def test_random_features_are_a_stationary_kernel():
    golden = GOLDEN['kernel']
    spec = f"fourier_features(kind='random', features=16384, scale={golden['scale']})"
    encoder = make_features(spec, nnx.Rngs(1))
    points = jnp.array([[0.1, 0.2], *[[0.1 + 0.6 * d, 0.2 - 0.8 * d] for d in golden['distance']]])
    code = np.asarray(encoder.encode(points), np.float64)
    m = encoder.width // 2
    np.testing.assert_allclose((code**2).sum(-1), m, rtol=1e-6)
    np.testing.assert_allclose(code[1:] @ code[0] / m, golden['value'], atol=5 * 0.71 / m**0.5)
    gaps = np.asarray(points[1:] - points[0], np.float64) @ np.asarray(encoder.b[...], np.float64)
    np.testing.assert_allclose(code[1:] @ code[0], np.cos(2 * np.pi * gaps).sum(-1), atol=0.02)
    moved = np.asarray(encoder.encode(points + 0.5), np.float64)
    np.testing.assert_allclose(moved[1:] @ moved[0], code[1:] @ code[0], atol=0.05)


def test_the_scale_is_a_standard_deviation_and_other_seeds_draw_others():
    make = lambda seed: make_features("fourier_features(kind='random')", nnx.Rngs(seed)).b[...]
    assert make(0).shape == (2, 128) and np.std(make(0)) == pytest.approx(10, rel=0.15)
    assert np.abs(make(0) - make(1)).max() > 1
