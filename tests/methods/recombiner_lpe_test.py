"""RECOMBINER's learnable positional encodings: Fourier features against NumPy, the reach of a cell,
zeros, reading at pixels and between them, and refused shapes.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.coordinates import make_features
from posenc_jax.coordinates.recombiner_lpe import fourier_part, looked_up
from posenc_jax.core.registry import SpecError

GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / 'golden' / 'recombiner_lpe.json').read_text()
)['values']


def test_fourier_features():
    np.testing.assert_allclose(
        fourier_part(jnp.array(GOLDEN['point'])), GOLDEN['fourier'], atol=1e-3
    )


@pytest.mark.full_but_one
@pytest.mark.parametrize('shape', [(112,), (80, 112)])
def test_a_cell_reaches_eleven_pixels_beyond_itself(shape):
    encoder = make_features(f'recombiner_lpe(shape={shape}, latent=3, hidden=4, features=2)')
    before = encoder.encoding()
    assert before.shape == (*shape, 2)
    cell = (2,) * len(shape)
    encoder.latent[cell] = encoder.latent[cell] + 1.0
    changed = np.abs(encoder.encoding() - before).max(-1) > 0
    (low, *_), high = np.argwhere(changed), np.argwhere(changed)[-1]
    margin = (GOLDEN['reach'] - GOLDEN['cell']) // 2
    np.testing.assert_array_equal(low, 2 * GOLDEN['cell'] - margin)
    np.testing.assert_array_equal(high - low + 1, GOLDEN['reach'])
    corner = (0,) * len(shape)  # clipped at the border
    before = encoder.encoding()
    encoder.latent[corner] = encoder.latent[corner] + 1.0
    changed = np.abs(encoder.encoding() - before).max(-1) > 0
    np.testing.assert_array_equal(np.argwhere(changed)[-1] + 1, GOLDEN['cell'] + margin)


def test_zeros_give_zeros_and_the_features_are_joined():
    encoder = make_features('recombiner_lpe(shape=(16, 32), latent=3, hidden=4, features=5)')
    points = jax.random.uniform(jax.random.key(0), (7, 2), minval=-1.0)
    learned = encoder.encode(points)[:, 16:]
    assert learned.shape == (7, 5) and np.abs(learned).max() > 1e-3
    encoder.latent[...] = jnp.zeros_like(encoder.latent[...])
    for bias in encoder.biases:
        bias[...] = jnp.zeros_like(bias[...])
    out = encoder.encode(points)
    assert not np.any(out[:, 16:])
    np.testing.assert_array_equal(out[:, :16], fourier_part(points))
    assert encoder.encode(points[:0]).shape == (0, 21)


def test_pixels_are_read_as_they_are_and_points_between_them_in_between():
    values = jax.random.normal(jax.random.key(0), (4, 6, 3))
    axis = lambda n: (jnp.arange(n) + 0.5) / n * 2 - 1
    grid = jnp.stack(jnp.meshgrid(axis(4), axis(6), indexing='ij'), -1)
    np.testing.assert_allclose(looked_up(values, grid), values, atol=1e-5)
    middle = (grid[1, 2] + grid[2, 3]) / 2
    np.testing.assert_allclose(looked_up(values, middle), values[1:3, 2:4].mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(looked_up(values, jnp.array([3.0, 3.0])), values[3, 5], atol=1e-5)
    slope = jax.jacobian(lambda p: looked_up(values, p))(middle)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


def test_wrong_shapes_are_refused():
    for shape, message in (
        ('(40, 32)', 'multiples of 16, got 40; nearest: 32'),
        ('(0,)', 'got 0; nearest: 16'),
        ('(16, 16, 16, 16)', 'one to three axes'),
    ):
        with pytest.raises(SpecError, match=message):
            make_features(f'recombiner_lpe(shape={shape})', nnx.Rngs(0))
