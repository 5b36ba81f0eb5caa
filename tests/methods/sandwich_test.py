"""Sandwich: the curve, its accuracy anywhere, heads, and how it falls."""

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.sandwich import sandwich_curve
from tests.golden_files import golden, golden_suite

GOLDEN = golden('sandwich')


def curve(distances, *, start=0, dim=128):
    q_pos = jnp.asarray(start + np.asarray(distances))[None]
    return np.asarray(sandwich_curve(q_pos, jnp.array([[start]]), dim))[0, :, 0]


def exact(distances, dim=128):
    """The formula in float64."""
    t = np.arange(1, dim // 2 + 1)
    angles = np.asarray(distances, np.float64)[:, None] / 10000.0 ** (2 * t / dim)
    return np.cos(angles).sum(-1) - dim / 2


test_golden = golden_suite('sandwich') | {
    'curve.*': (lambda _, distance: curve([int(distance)])[0], {'atol': 1e-5}),
    'narrow': (lambda _: curve([1], dim=4)[0], {'rtol': 5e-3}),
}


@pytest.mark.parametrize('start', [0, 10**6, 2**30])
def test_it_is_that_of_the_distance_anywhere(start):
    distances = np.array([0, 1, 7, 300, 5000])
    near = dict(atol=3e-5)  # four last bits of 64 in float32, the sum from which 64 is subtracted
    np.testing.assert_allclose(curve(distances, start=start), exact(distances), **near)
    np.testing.assert_allclose(curve(-distances, start=start), exact(distances), **near)


def test_positions_between_tokens():
    distances = np.array([0.25, 0.5, 1.75, 40.125])
    np.testing.assert_allclose(curve(distances), exact(distances), atol=1e-5)
    drawn = pj.make('randomized_pe(max_len=64) | sandwich()', heads=8, train_len=8)
    assert drawn.parts[1].bias(jnp.array([[3, 60]]), jnp.array([[3]])).shape == (1, 8, 2, 1)


def test_heads():
    pos = jnp.array([[10]])
    bias = np.asarray(pj.make('sandwich()', heads=8).bias(pos, jnp.array([[0]])))[0, :, 0, 0]
    np.testing.assert_allclose(bias, GOLDEN['curve']['10'] / np.arange(1, 9), rtol=1e-6)


def test_it_falls_as_the_logarithm_of_the_distance_and_stays_above_its_bound():
    """The claim: a receptive field that goes on growing. The angles are spread evenly over ln
    10000, and so the curve is near that of a continuum, `-(w/2) (ln d + gamma) / ln 10000`; ALiBi
    falls linearly.
    """
    distances = np.arange(8, 2049)
    law = -64 / np.log(10000.0) * (np.log(distances) + np.euler_gamma)
    apart, fallen = np.abs(curve(distances) - law), law[0] - law[-1]
    assert apart.mean() < 0.1 * fallen and apart.max() < 0.3 * fallen
    assert curve(np.arange(0, 300000, 37)).min() > -128.0
