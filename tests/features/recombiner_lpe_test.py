"""RECOMBINER's learnable positional encodings: Fourier features against NumPy, the reach of a cell,
zeros, and reading at pixels and between them.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.recombiner_lpe import recombiner_lpe_read, recombiner_lpe_waves
from tests.golden_files import golden

GOLDEN = golden('recombiner_lpe')['values']


def test_fourier_features():
    # 0.3 and -0.7 differ from their float32 by up to 2e-8, and the highest rate is 3217.
    np.testing.assert_allclose(
        recombiner_lpe_waves(jnp.array(GOLDEN['point']), 4), GOLDEN['fourier'], atol=1e-4
    )


def waves(points, frequencies):
    """`recombiner_lpe_waves` in float64, a point, coordinate and frequency at a time."""
    rates = [1024 ** (k / (frequencies - 1)) for k in range(frequencies)]
    angles = [[math.pi * float(x) * w for x in point for w in rates] for point in points]
    return [[math.cos(a) for a in row] + [math.sin(a) for a in row] for row in angles]


@pytest.mark.parametrize(
    'options, frequencies',
    [
        ('shape=(16,)', 8),
        ('shape=(16, 16)', 4),
        ('shape=(16, 16, 16)', 3),
        ('shape=(24, 16, 16), cells=(24, 16, 16)', 3),
        ('shape=(16, 16, 16), fourier=24', 4),
    ],
)
def test_the_frequencies_follow_the_axes_and_all_are_exact(options, frequencies):
    encoder = make_features(f'recombiner_lpe({options}, latent=2, hidden=2, features=2)')
    axes = encoder.components
    points = jax.random.uniform(jax.random.key(0), (50, axes), minval=-1.0)
    found = jax.jit(encoder.encode)(points)
    assert encoder.width == found.shape[1] == 2 * axes * frequencies + 2
    np.testing.assert_allclose(found[:, :-2], waves(points, frequencies), atol=1e-6)


def test_the_slope_of_the_highest_frequency():
    slope = jax.grad(lambda x: recombiner_lpe_waves(x, 2)[3])(jnp.array([0.25]))  # sin(1024 pi x)
    np.testing.assert_allclose(slope, 1024 * math.pi, rtol=1e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'options', ['shape=(112,)', 'shape=(80, 112)', 'shape=(72, 32, 32), cells=(24, 16, 16)']
)
def test_a_cell_reaches_eleven_pixels_beyond_itself(options):
    """A cell of a video has a size of its own along time; at a border the reach is clipped."""
    encoder = make_features(f'recombiner_lpe({options}, latent=3, hidden=4, features=2)')
    size, margin = np.array(encoder.cells), (GOLDEN['reach'] - GOLDEN['cell']) // 2
    shape = encoder.encoding().shape[:-1]
    np.testing.assert_array_equal(shape, size * encoder.latent.shape[:-1])
    for cell in (0 * size, 0 * size + 1):
        before = encoder.encoding()
        encoder.latent[tuple(cell)] = encoder.latent[tuple(cell)] + 1.0
        changed = np.argwhere(np.abs(encoder.encoding() - before).max(-1) > 0)
        low, high = cell * size - margin, (cell + 1) * size + margin
        np.testing.assert_array_equal(changed.min(0), np.maximum(low, 0))
        np.testing.assert_array_equal(changed.max(0) + 1, np.minimum(high, shape))


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
    np.testing.assert_array_equal(out[:, :16], recombiner_lpe_waves(points, 4))
    assert encoder.encode(points[:0]).shape == (0, 21)


def test_pixels_are_read_as_they_are_and_points_between_them_in_between():
    values = jax.random.normal(jax.random.key(0), (4, 6, 3))
    axis = lambda n: (jnp.arange(n) + 0.5) / n * 2 - 1
    grid = jnp.stack(jnp.meshgrid(axis(4), axis(6), indexing='ij'), -1)
    np.testing.assert_allclose(recombiner_lpe_read(values, grid), values, atol=1e-5)
    middle = (grid[1, 2] + grid[2, 3]) / 2
    np.testing.assert_allclose(
        recombiner_lpe_read(values, middle), values[1:3, 2:4].mean((0, 1)), atol=1e-5
    )
    np.testing.assert_allclose(
        recombiner_lpe_read(values, jnp.array([3.0, 3.0])), values[3, 5], atol=1e-5
    )
    slope = jax.jacobian(lambda p: recombiner_lpe_read(values, p))(middle)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0
