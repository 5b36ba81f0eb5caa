"""Multi-scale explicit positional encoding: coordinates and a vector by hand, whole shifts as
rolls, the baseline's shift, a small generator, and refused arguments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.features.coordinates.encoder import make_features
from posenc_jax.features.coordinates.mspe import (
    MultiScalePositions,
    grid_coordinates,
    mspe,
    shifted_axis,
    shifted_constant,
)
from tests.golden_files import golden

GOLDEN = golden('mspe')['values']


@pytest.mark.parametrize('case', ['half', 'more'])
def test_golden_coordinates(case):
    case = GOLDEN['shifts'][case]
    found = shifted_axis(GOLDEN['shifts']['length'], case['shift'])
    np.testing.assert_allclose(found, case['coordinates'], atol=1e-6)


def test_golden_vector():
    """Two waves for each axis, 1 and 0.01; columns come first."""
    found = mspe(jnp.array([2, 3]), 8)
    np.testing.assert_allclose(found, GOLDEN['row_2_column_3'], atol=1e-6)
    encoder = make_features('mspe(features=8, scale=2.0)')
    np.testing.assert_allclose(encoder.encode(jnp.array([4, 6])), found, atol=1e-6)


@pytest.mark.full
def test_a_whole_shift_rolls_and_a_larger_grid_extends():
    code = lambda *a, **k: np.asarray(mspe(grid_coordinates(*a, **k), 8))
    rolled = np.roll(code(5, 6), (2, -1), (0, 1))
    np.testing.assert_array_equal(code(5, 6, shift=(2.0, -1.0)), rolled)
    half = code(5, 6, shift=(4.0, -2.0), size=(10, 12))  # at half the resolution
    np.testing.assert_array_equal(half, rolled)
    np.testing.assert_array_equal(code(9, 8)[:5, :6], code(5, 6))
    traced = jax.jit(lambda s: mspe(grid_coordinates(5, 6, s), 8))(jnp.array([2.0, -1.0]))
    np.testing.assert_allclose(traced, rolled, atol=1e-6)


@pytest.mark.full
def test_no_factor_leaves_features_alone():
    positions = MultiScalePositions(levels=2)
    positions.gamma[...] = jnp.array([0.0, 0.5])
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 8))
    np.testing.assert_array_equal(positions(x, 0, shift=(1.0, 0.3)), x)
    added = positions(x, 1) - x
    np.testing.assert_allclose(added[1], 0.5 * mspe(grid_coordinates(4, 6), 8), atol=1e-6)
    assert positions(x.astype(jnp.bfloat16), 1).dtype == jnp.bfloat16


def test_the_baseline_is_interpolated():
    constant = jnp.arange(12.0).reshape(3, 4, 1)
    rows = shifted_constant(constant, (1.0, 0.0))
    np.testing.assert_array_equal(rows, np.roll(constant, 1, 0))
    both = shifted_constant(constant, (0.5, -1.75))
    by_hand = lambda a, s, t, axis: (1 - t) * np.roll(a, s[0], axis) + t * np.roll(a, s[1], axis)
    expected = by_hand(by_hand(np.asarray(constant), (0, 1), 0.5, 0), (-1, -2), 0.75, 1)
    np.testing.assert_allclose(both, expected, atol=1e-6)


class Generator:
    """Two resolutions, 4 x 4 and 8 x 8, with circular convolutions."""

    def __init__(self):
        self.positions = MultiScalePositions(levels=1)
        normal = lambda seed, *shape: 0.3 * jax.random.normal(jax.random.key(seed), shape)
        self.low, self.high = normal(0, 3, 3, 8, 8), normal(1, 3, 3, 8, 8)
        self.constant = normal(2, 4, 4, 8)

    def convolve(self, x, kernel):
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='wrap')
        return jnp.tanh(
            jax.lax.conv_general_dilated(
                x, kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
            )
        )

    def __call__(self, shift, explicit=True):
        size = (8, 8)
        if explicit:
            first = self.positions.first(4, 4, 8, shift, size)
        else:
            first = shifted_constant(self.constant, (shift[0] / 2, shift[1] / 2))
        x = self.convolve(first[None], self.low)
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = self.convolve(x, self.high)
        return np.asarray(self.positions(x, 0, shift, size) if explicit else x)


@pytest.mark.full
@pytest.mark.parametrize('explicit', [True, False])
def test_a_generator_follows_a_shift(explicit):
    """The claim of the paper: the picture moves with the grid, by whole cells of every resolution
    exactly.
    """
    generator = Generator()
    moved = generator((2.0, -4.0), explicit)
    np.testing.assert_allclose(
        moved, np.roll(generator((0.0, 0.0), explicit), (2, -4), (1, 2)), atol=1e-5
    )
    # Half a cell of the low resolution moves the picture too.
    assert np.abs(generator((1.0, 0.0), explicit) - generator((0.0, 0.0), explicit)).max() > 0.1


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match='multiple of 4 channels, got 6'):
        mspe(jnp.zeros(2), 6)
    with pytest.raises(ValueError, match='at least 1 level, got 0'):
        MultiScalePositions(levels=0)
    with pytest.raises(ValueError, match=r'has levels 0 \.\. 1, got 2'):
        MultiScalePositions(levels=2)(jnp.zeros((1, 2, 2, 4)), 2)
