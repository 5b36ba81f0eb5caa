"""Double: rounding of every operation against extended precision, eager and compiled, what must be
exact, derivatives.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from posenc_jax.base.double import Double, choose, root_powers
from tests.attention.ring_test import ring_of
from tests.phases import wide

# What each operation computes, and how large the numbers are whose last bits it may lose.
OPERATIONS = {
    'add': (lambda a, b: a + b, lambda a, b: abs(a) + abs(b)),
    'subtract': (lambda a, b: a - b, lambda a, b: abs(a) + abs(b)),
    'multiply': (lambda a, b: a * b, lambda a, b: abs(a * b)),
    'divide': (lambda a, b: a / b, lambda a, b: abs(a / b)),
    'products and sums': (
        lambda a, b: (a * b - a / b) * (3.0 + b),
        lambda a, b: (abs(a * b) + abs(a / b)) * (3.0 + abs(b)),
    ),
}


def some(seed):
    rng = np.random.default_rng(seed)
    return Double.of(10.0 ** rng.uniform(-6, 6, 5000) * rng.choice([-1, 1], 5000))


@pytest.mark.full_but_one
@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('name', OPERATIONS)
def test_one_operation_loses_what_lies_below_46_bits(name, compiled):
    operation, size = OPERATIONS[name]
    a, b = jax.tree.map(jnp.asarray, (some(0), some(1)))
    found = np.asarray((jax.jit(operation) if compiled else operation)(a, b))
    a, b = wide(a), wide(b)
    assert (np.abs(found - operation(a, b)) / size(a, b)).max() < 3 * 2.0**-46


def test_numbers_are_held_to_48_bits_and_integers_exactly():
    values = 10.0 ** np.random.default_rng(0).uniform(-20, 20, 1000)
    np.testing.assert_allclose(np.asarray(Double.of(values)), values, rtol=2.0**-48)
    for whole in (2**31 - 1, -(2**31), 123_456_789, -1, 4095, 4096, 0):
        held = Double.of(jnp.asarray(whole))
        assert np.asarray(held) == whole and held.high == np.float32(whole)


def test_numbers_stand_on_either_side():
    x = Double.of(jnp.asarray(3.0))
    third = [2.0 - x, 2.0 + x, 2.0 * x, 2.0 / x, np.float64(2.0) / x, np.arange(3.0) * x]
    for found, expected in zip(third, [-1.0, 5.0, 6.0, 2 / 3, 2 / 3, [0.0, 3.0, 6.0]], strict=True):
        np.testing.assert_allclose(np.asarray(found), expected, rtol=2.0**-45)


@pytest.mark.full_but_one
@pytest.mark.parametrize('n', [1, 7, 63, 127])
def test_powers_of_roots(n):
    x = jnp.asarray([1.0, 1.0009765625, 17.5, 2e6], jnp.float32)
    found = np.asarray(jax.jit(lambda x: root_powers(Double.of(x), n))(x))
    expected = wide(x)[:, None] ** (-wide(np.arange(n + 1)) / n)
    np.testing.assert_array_equal(found[0], 1.0)
    assert found.shape == (4, n + 1) and np.abs(found / expected - 1).max() < (n + 8) * 2.0**-47
    assert np.abs(found / expected - 1)[:, :2].max() < 2.0**-45  # the fastest planes turn most


def test_choice_and_powers():
    x = Double.of(jnp.asarray([1.5, 2.5]))
    np.testing.assert_array_equal(choose(x.high > 2, x, -x), Double.of(np.array([-1.5, 2.5])))
    np.testing.assert_array_equal((x ** np.array([0, 5]))[1:], Double.of(np.array([2.5**5])))


@pytest.mark.full
def test_derivatives():
    function = lambda x: (lambda y: (3.0 * y * y + 1.0 / y - y).high)(Double.of(x))
    np.testing.assert_allclose(jax.grad(function)(1.7), 6 * 1.7 - 1 / 1.7**2 - 1, rtol=1e-6)
    powers = lambda x: root_powers(Double.of(x), 4).high.sum()
    expected = sum(-t / 4 * 1.7 ** (-t / 4 - 1) for t in range(5))
    np.testing.assert_allclose(jax.grad(powers)(1.7), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jvp(powers, (1.7,), (1.0,))[1], expected, rtol=1e-5)


def test_powers_and_roots_have_the_same_bits_in_shard_map():
    x, cut = jnp.array([3.0, 7.0]), PartitionSpec('ring')
    run = lambda x: root_powers(Double.of(x), 5)
    found = jax.jit(jax.shard_map(run, mesh=ring_of(2), in_specs=cut, out_specs=cut))(x)
    jax.tree.map(np.testing.assert_array_equal, found, jax.jit(run)(x))
