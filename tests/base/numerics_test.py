"""Phases: the error curve over positions, fractions, signs, what cannot be represented,
derivatives.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.base.double import Double
from posenc_jax.base.phases import phase
from tests.phases import error

THETA = 10000.0 ** (-np.arange(32) / 32)
REACH = [100, 4095, 131071, 2_000_000, 2**24 + 1, 2**31 - 1]


def positions(reach):
    some = np.random.default_rng(0).integers(0, reach, 200)
    return np.concatenate([some, -some, [reach, -reach, 0, 1]]).astype(np.int32)


@pytest.mark.full_but_one
@pytest.mark.parametrize('reach', REACH)
@pytest.mark.parametrize('sign', [1, -1])
def test_static_and_traced_frequencies_are_exact_at_every_position(reach, sign):
    pos = positions(reach)
    assert error(phase(jnp.asarray(pos), sign * THETA), pos, sign * THETA) < 4e-7
    for traced in (jnp.asarray(sign * THETA, jnp.float32), Double.of(sign * THETA)):
        assert error(jax.jit(phase)(jnp.asarray(pos), traced), pos, np.asarray(traced)) < 4e-7


def test_the_plain_float32_product_is_not():
    plain = lambda pos: pos.astype(np.float32)[:, None] * THETA.astype(np.float32)
    errors = [error(plain(positions(reach)), positions(reach), THETA) for reach in REACH]
    assert errors[1] > 1e-4 and errors[2] > 1e-3 and errors[3] > 5e-2 and errors[-1] > 1


def test_reduced_to_half_a_turn_on_either_side():
    angles = phase(jnp.arange(-5000, 5000), THETA)
    assert angles.dtype == jnp.float32 and np.abs(angles).max() <= np.float32(np.pi)


@pytest.mark.full_but_one
@pytest.mark.parametrize('pos', [0.25, -0.25, 3.5, -7.75, 1000.125, 131071.5])
def test_fractional_positions(pos):
    for inv_freq in (THETA, jnp.asarray(THETA, jnp.float32)):
        assert (
            error(phase(jnp.asarray([pos], jnp.float32), inv_freq), np.asarray([pos]), inv_freq)
            < 5e-7
        )


def test_fractional_and_integer_positions_agree_where_both_can_be_written():
    pos = jnp.arange(-300, 300)
    np.testing.assert_array_equal(phase(pos, THETA), phase(pos.astype(jnp.float32), THETA))


def test_bfloat16_positions_are_read_exactly():
    assert (
        error(phase(jnp.asarray([256.0], jnp.bfloat16), THETA), np.asarray([256.0]), THETA) < 4e-7
    )


@pytest.mark.full_but_one
@pytest.mark.parametrize('inv_freq', [0.0, 1e-30, 3.0, -7.5, 6.2831855, 1000.3, 2.0**30])
def test_traced_frequencies_of_every_size(inv_freq):
    pos = positions(2**24 if inv_freq < 2**20 else 3)  # within what the reference can hold
    inv_freq = np.asarray([inv_freq], np.float32)
    assert error(phase(jnp.asarray(pos), jnp.asarray(inv_freq)), pos, inv_freq) < 4e-7


def test_traced_frequencies_without_a_meaning_are_nan():
    assert np.isnan(
        phase(jnp.asarray([3]), jnp.asarray([2.0**31, -(2.0**40), np.inf, np.nan], jnp.float32))
    ).all()


def test_frequencies_per_row_broadcast():
    inv_freq = jnp.asarray([[[0.1, 0.2]], [[0.3, 0.4]]], jnp.float32)
    angles = phase(jnp.asarray([[1, 2, 3]]), inv_freq)
    assert angles.shape == (2, 3, 2)
    np.testing.assert_allclose(angles[1, 2], [0.9, 1.2], rtol=1e-6)


@pytest.mark.full
def test_derivatives():
    pos, inv_freq = jnp.asarray([3.5]), jnp.asarray([0.3, 0.01])
    by_pos = jax.jvp(lambda p: phase(p, inv_freq), (pos,), (jnp.ones(1),))[1]
    by_freq = jax.jvp(lambda f: phase(pos, f), (inv_freq,), (jnp.asarray([1.0, 2.0]),))[1]
    np.testing.assert_allclose(by_pos, [[0.3, 0.01]], rtol=1e-6)
    np.testing.assert_allclose(by_freq, [[3.5, 7.0]], rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(lambda p: phase(p, np.asarray([0.3, 0.01])).sum())(pos), [0.31], rtol=1e-6
    )
    whole = jax.grad(lambda f: phase(jnp.asarray([7]), f).sum())(inv_freq)
    np.testing.assert_allclose(whole, [7.0, 7.0])
    double = jax.grad(lambda f: phase(jnp.asarray([7]), 1.0 / Double.of(f)).sum())(inv_freq)
    np.testing.assert_allclose(double, -7.0 / inv_freq**2, rtol=1e-6)


@pytest.mark.full
def test_vmap_and_jit():
    pos, inv_freq = jnp.arange(12).reshape(3, 4), jnp.asarray(THETA[:6].reshape(3, 2), jnp.float32)
    mapped = jax.vmap(phase)(pos, inv_freq)
    np.testing.assert_array_equal(
        mapped, jnp.stack([jax.jit(phase)(p, f) for p, f in zip(pos, inv_freq)])
    )
