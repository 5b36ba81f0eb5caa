"""Poly-INR: levels against NumPy, the degree of its polynomial, and points that two resolutions
share.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.fields import make_field
from posenc_jax.fields.poly_inr import poly_level
from tests.golden_files import golden

GOLDEN = golden('poly_inr')['values']


def test_levels():
    x, grid = None, jnp.array(GOLDEN['grid'])
    for level, expected in zip(GOLDEN['levels'], GOLDEN['features'], strict=True):
        turn, move, scale, shift, weight, bias = map(jnp.array, level)
        x, grid = poly_level(x, grid, (turn, move), (scale, shift), (weight, bias))
        np.testing.assert_allclose(x, expected, atol=1e-5)
    np.testing.assert_allclose(grid, GOLDEN['last_grid'], atol=1e-6)


@pytest.mark.parametrize('levels', [1, 3])
def test_without_leaky_units_it_is_a_polynomial(levels):
    """After `levels` levels the degree is `levels`: that difference is not zero, the next one is.

    The first level is of degree 1, and every further one multiplies by a linear function.
    """
    spec = f'poly_inr(width=6, levels={levels}, style=4, slope=1.0)'
    network = make_field(spec, features=1, outputs=1, rngs=nnx.Rngs(1))
    graphdef, state = nnx.split(network)
    with jax.enable_x64(True):  # differences of high order lose digits
        state = jax.tree.map(lambda a: a.astype(jnp.float64), state)
        x = jnp.linspace(-1.0, 1.0, levels + 3)[:, None]
        values = np.asarray(nnx.merge(graphdef, state).features(x))
    last = np.diff(values, levels, axis=0)
    assert np.abs(last).max() > 1e-4
    assert np.abs(np.diff(last, axis=0)).max() < 1e-9 * np.abs(values).max()


def test_shared_points_of_two_resolutions_have_the_same_values():
    network = make_field('poly_inr(width=8, levels=3, style=4)', features=2, outputs=3)
    grid = lambda n: jnp.stack(jnp.meshgrid(*[jnp.linspace(-1, 1, n)] * 2, indexing='ij'), -1)
    np.testing.assert_allclose(network(None, grid(9))[::2, ::2], network(None, grid(5)), atol=1e-5)


def test_features_are_clamped():
    one = (jnp.eye(1), jnp.zeros(1))
    big = (1e4 * jnp.eye(1), jnp.zeros(1))
    for sign in (1.0, -1.0):
        x, _ = poly_level(None, jnp.array([[sign]]), one, one, big)
        assert x.item() == sign * 256


def test_the_width_of_a_style_does_not_change_the_scale():
    """With a factor too many, wide styles vanish and the picture is the same everywhere."""
    grid = jnp.stack(jnp.meshgrid(*[jnp.linspace(-1, 1, 5)] * 2, indexing='ij'), -1)
    spec = 'poly_inr(width=32, levels=6, style={})'
    spread = {
        style: np.mean([np.std(
            make_field(spec.format(style), features=2, outputs=1, rngs=nnx.Rngs(seed))(None, grid)
        ) for seed in range(4)])
        for style in (8, 512)
    }  # fmt: skip
    assert 0.3 < spread[512] / spread[8] < 3
