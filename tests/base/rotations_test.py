"""Exponentials of skew matrices and the map of Cayley, against SciPy and NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from posenc_jax.base.rotations import cayley, exponential_less_one, powers_less_one, skew

EXP, CAYLEY = jax.jit(exponential_less_one), jax.jit(cayley)


def skew_matrix(seed, size, scale):
    a = np.random.default_rng(seed).uniform(0, scale, (size, size))
    return np.triu(a, 1) - np.triu(a, 1).T


@pytest.mark.parametrize(
    'size, scale, atol', [(2, 1e-4, 1e-9), (2, 1, 1e-6), (8, 6.3, 3e-6), (64, 6.3, 3e-6)]
)
def test_exponentials(size, scale, atol):
    a = skew_matrix(0, size, scale)
    found = np.float64(EXP(jnp.float32(a)))
    expected = scipy.linalg.expm(np.float64(np.float32(a))) - np.eye(size)
    np.testing.assert_allclose(found, expected, atol=atol)
    whole = found + np.eye(size)
    np.testing.assert_allclose(whole @ whole.T, np.eye(size), atol=5 * atol)
    assert np.linalg.det(whole) == pytest.approx(1, abs=2e-5)


def test_the_largest_matrix_and_what_is_beyond():
    turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])
    found = np.float64(EXP(jnp.stack([8000.0 * turn, 8200.0 * turn])))
    expected = scipy.linalg.expm(8000.0 * np.array([[0.0, -1.0], [1.0, 0.0]])) - np.eye(2)
    np.testing.assert_allclose(found[0], expected, atol=5e-3)  # 8000 times the precision of float32
    assert np.isnan(found[1]).all()


def test_derivatives_of_exponentials():
    a, e = skew_matrix(1, 4, 3.0), skew_matrix(2, 4, 1.0)
    _, slope = jax.jvp(EXP, (jnp.float32(a),), (jnp.float32(e),))
    expected = scipy.linalg.expm_frechet(a, e, compute_expm=False)
    np.testing.assert_allclose(slope, expected, atol=1e-5)


def test_powers():
    a = skew_matrix(3, 4, 1.0)
    found = powers_less_one(EXP(jnp.float32(a)), 5)
    for b, power in enumerate(np.asarray(found)):
        np.testing.assert_allclose(power, scipy.linalg.expm(2**b * a) - np.eye(4), atol=3e-5)


def test_the_lower_triangle_is_not_read():
    a = jnp.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(skew(a), [[0, 1, 2], [-1, 0, 5], [-2, -5, 0]])


@pytest.mark.parametrize('size, scale', [(2, 1.0), (7, 0.5), (16, 4.0)])
def test_cayley(size, scale):
    s = skew_matrix(4, size, scale)
    found = np.float64(CAYLEY(jnp.float32(s)))
    one = np.eye(size)
    expected = np.linalg.solve((one + s).T, (one - s).T).T
    np.testing.assert_allclose(found, expected, atol=5e-6)
    np.testing.assert_allclose(found @ found.T, one, atol=2e-6)
    e = skew_matrix(5, size, 1.0)
    _, slope = jax.jvp(CAYLEY, (jnp.float32(s),), (jnp.float32(e),))
    inverse = np.linalg.inv(one + s)
    np.testing.assert_allclose(slope, -2 * inverse @ e @ inverse, atol=2e-5)


def test_cayley_of_a_batch_is_that_of_each():
    both = jnp.float32(np.stack([skew_matrix(6, 4, 1.0), np.zeros((4, 4))]))
    found = CAYLEY(both)
    np.testing.assert_allclose(found[0], CAYLEY(both[0]), atol=1e-6)
    np.testing.assert_array_equal(found[1], np.eye(4))
