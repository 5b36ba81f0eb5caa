"""BARF: the window over training by hand, the order of its waves, and how a model passes the
progress on.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.barf import barf_features, barf_window
from posenc_jax.lab.model.field import Field, FieldConfig
from tests.golden_files import golden_suite

test_golden = golden_suite('barf', atol=1e-6) | {
    'windows.*': lambda windows, progress: barf_window(float(progress), 4),
    'two_bands': lambda case: barf_features(jnp.array(case['point']), jnp.ones(2)),
}


def waves_by_loop(x, bands, progress, begin, end):
    """A coordinate, a wave and a band at a time, in float64."""
    grown, out = bands * (progress - begin) / (end - begin), list(x)
    for value in x:
        for wave in (np.sin, np.cos):
            for k in range(bands):
                weight = (1 - np.cos(np.pi * min(max(grown - k, 0), 1))) / 2
                out.append(weight * wave(2.0**k * np.pi * value))
    return out


@pytest.mark.parametrize('progress', [0.0, 0.13, 0.4, 0.7])
def test_features_are_those_of_a_loop(progress):
    encoder = make_features('barf(bands=5, begin=0.05, end=0.6)')
    x = np.array([[0.3, -0.71], [0.11, 0.9]], np.float32)
    found = jax.jit(encoder.encode_at)(x, progress)
    expected = [waves_by_loop(p, 5, progress, 0.05, 0.6) for p in np.float64(x)]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_coordinates_alone_are_left_before_the_window_and_all_waves_at_the_end():
    encoder = make_features('barf(bands=3)')
    x = jnp.array([[0.3, -0.7]])
    early = encoder.encode_at(x, 0.05)
    np.testing.assert_array_equal(early[:, :2], x)
    assert not np.any(early[:, 2:])
    np.testing.assert_array_equal(encoder.encode_at(x), encoder.encode(x))
    np.testing.assert_allclose(encoder.encode_at(x, 0.9), encoder.encode(x), atol=1e-6)
    plain = make_features('fourier_features(bands=3)').encode(x)
    np.testing.assert_allclose(np.sort(encoder.encode(x)), np.sort(plain), atol=1e-6)


def test_joined_features_and_models_pass_the_progress_on():
    features = 'barf(bands=3, begin=0.0, end=0.4) | fourier_features(bands=1)'
    encoder, x = make_features(features), jnp.array([[0.3, -0.7], [0.2, 0.4]])
    found = encoder.encode_at(x, 0.0)
    assert not np.any(found[:, 2:14]) and np.abs(found[:, 16:]).min() > 0.1
    cfg = FieldConfig(
        components=2, output_size=1, predicts='value', features=features, field='linear()'
    )
    model = Field(cfg, rngs=nnx.Rngs(0))
    read = lambda at: model.network(encoder.encode_at(x, at), x)
    np.testing.assert_array_equal(model(x), read(None))
    np.testing.assert_array_equal(model(x, progress=0.1), read(0.1))
    assert np.abs(read(None) - read(0.1)).max() > 1e-3


def test_other_encoders_do_not_read_the_progress():
    encoder, x = make_features('fourier_features(bands=2)'), jnp.array([[0.3, -0.7]])
    np.testing.assert_array_equal(encoder.encode_at(x, 0.0), encoder.encode(x))
