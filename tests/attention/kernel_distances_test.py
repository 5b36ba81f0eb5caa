"""Distances of pairs in kernels, and what `kerple` and `fire` make of them there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.attention.distances import float_distance, log1p_of_product
from posenc_jax.attention.kernels.program import Program, at_any_depth
from posenc_jax.base.targets import INTERPRETED
from posenc_jax.methods.fire import fire_bias

WIDTH = 8
each_interpreter = pytest.mark.parametrize('target', INTERPRETED)


def in_kernel(target, function, *arrays):
    program = Program(target, function, *arrays)
    return program(program.constants, *arrays), program


@each_interpreter
@pytest.mark.parametrize('first', [0, 2**24 + 1, 10**9])
def test_distances_are_exact_wherever_the_text_is(target, first):
    q_pos, k_pos = (jnp.arange(n, n + 8)[None] + first for n in (40, 3))
    found, program = in_kernel(target, float_distance, q_pos, k_pos)
    exact = np.arange(40.0, 48.0)[:, None] - np.arange(3.0, 11.0)
    np.testing.assert_array_equal(found.reshape(8, 8), exact)
    tiles = [e for e in program._equations if e.outvars[0].aval.size == 64]
    assert 'convert_element_type' not in {e.primitive.name for e in tiles}


def test_fractional_positions_are_subtracted_as_they_are():
    q_pos, k_pos = jnp.array([[0.5, 7.25]]), jnp.array([[0.25, 3.0]])
    found, _ = in_kernel('interpreter', float_distance, q_pos, k_pos)
    np.testing.assert_array_equal(found.reshape(2, 2), [[0.25, -2.5], [7, 4.25]])


@each_interpreter
def test_a_logarithm_of_distances_has_a_gradient_without_divisions(target):
    distance = jnp.abs(jnp.arange(16.0)[:, None] - jnp.arange(8.0))[None, None] * 31
    weights = jnp.cos(jnp.arange(128.0)).reshape(distance.shape)

    def gradients(log, a, distance):
        return jax.grad(lambda a, distance: (weights * log(a, distance)).sum(), (0, 1))(a, distance)

    for a in (1e-2, 1.0, 30.0):
        arrays = jnp.full((1, 1, 1, 1), a), distance
        found, program = in_kernel(target, lambda *x: gradients(log1p_of_product, *x), *arrays)
        expected = gradients(lambda a, d: jnp.log1p(a * d), *arrays)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.reshape(other.shape), other, rtol=2e-5, atol=1e-5)
        assert 'div' not in {e.primitive.name for e in at_any_depth(program._equations)}


@each_interpreter
@pytest.mark.parametrize('q_first, k_first', [(0, 0), (8, 0), (1000, 0), (1000, 900), (0, 40)])
def test_the_network_of_fire_in_a_tile_is_that_of_all_pairs(target, q_first, k_first):
    """Units that turn on within the tile, are on or off in all of it, or are constant."""
    gain = jnp.array([1.0, -2.0, 3.0, 0.0, 0.0, -1.0, 5.0, -4.0])
    offset = jnp.array([-0.3, 1.1, 0.2, 0.5, -0.5, 0.0, -4.0, 3.9])
    arrays = (
        jnp.float32(-0.1), jnp.float32(20.0), jnp.stack([gain, offset]),
        jnp.linspace(-1.0, 1.5, WIDTH)[:, None],
        q_first + jnp.arange(8)[None], k_first + jnp.arange(16)[None],
    )  # fmt: skip
    weights = jnp.cos(jnp.arange(128.0)).reshape(1, 1, 8, 16)

    def run(*arrays):
        found, pull = jax.vjp(lambda *floats: fire_bias(*floats, *arrays[4:]), *arrays[:4])
        return found, *pull(weights)

    found, _ = in_kernel(target, run, *arrays)
    for one, other in zip(found, run(*arrays), strict=True):
        np.testing.assert_allclose(one.reshape(other.shape), other, atol=2e-5, rtol=2e-5)
