"""Multi-scale explicit positional encoding: coordinates and a vector by hand, whole shifts as
rolls, and the baseline's shift.
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
    moved = grid_coordinates(4, 6, (2.0, -3.0), (8, 18))  # by one cell
    added = positions(x, 1, (2.0, -3.0), (8, 18)) - x
    np.testing.assert_allclose(added[0], 0.5 * mspe(moved, 8), atol=1e-6)
    first = positions.first(4, 6, 8, (2.0, -3.0), (8, 18))
    np.testing.assert_allclose(first, np.roll(mspe(grid_coordinates(4, 6), 8), (1, -1), (0, 1)))


def test_the_baseline_is_interpolated():
    constant = jnp.arange(12.0).reshape(3, 4, 1)
    rows = shifted_constant(constant, (1.0, 0.0))
    np.testing.assert_array_equal(rows, np.roll(constant, 1, 0))
    both = shifted_constant(constant, (0.5, -1.75))
    by_hand = lambda a, s, t, axis: (1 - t) * np.roll(a, s[0], axis) + t * np.roll(a, s[1], axis)
    expected = by_hand(by_hand(np.asarray(constant), (0, 1), 0.5, 0), (-1, -2), 0.75, 1)
    np.testing.assert_allclose(both, expected, atol=1e-6)
