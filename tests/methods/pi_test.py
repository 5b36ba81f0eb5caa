"""PI: angles of scaled positions, and the paper's two bounds."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.core.registry import SpecError
from posenc_jax.rotation.frequencies.pi import pi_frequencies
from posenc_jax.rotation.rope import rope, rope_frequencies

GOLDEN = json.loads((Path(__file__).parents[1] / 'golden' / 'pi.json').read_text())['values']


def test_is_rope_at_positions_divided_by_the_factor():
    x, pos = jax.random.normal(jax.random.key(0), (1, 9, 2, 16)), jnp.arange(9)[None]
    ours = pj.make('rope(freqs=pi(factor=4.0))', head_dim=16).rotate(x, pos)
    np.testing.assert_allclose(ours, rope(x, pos / 4), atol=1e-6)


def test_factor_one_is_rope_and_integers_are_factors():
    x, pos = jax.random.normal(jax.random.key(0), (1, 9, 2, 16)), jnp.arange(9)[None]
    np.testing.assert_array_equal(pj.make('rope(freqs=pi(factor=1))', head_dim=16).rotate(x, pos), rope(x, pos))


def test_no_angle_beyond_those_of_the_trained_length():
    trained = 64 * rope_frequencies(16, 10000.0)
    np.testing.assert_allclose(256 * pi_frequencies(16, 10000.0, 4.0), trained)


def extrapolation_bound(distance, theta):
    """B(s) / d: the sum of |A_k(s)| over d."""
    partial = np.cumsum(np.exp(1j * np.asarray(distance)[:, None] * theta), axis=1)
    return np.abs(partial).sum(1) / (2 * len(theta))


def test_extrapolation_bound_of_the_paper():
    theta = rope_frequencies(128, 10000.0)
    np.testing.assert_allclose(extrapolation_bound(GOLDEN['distance'], theta), GOLDEN['bound_over_d'], atol=6e-4)
    bound = extrapolation_bound(np.arange(1, 4001), theta)
    for reach in (2048, 4000):
        assert bound[:reach].argmin() + 1 == GOLDEN[f'argmin_{reach}']
        assert bound[:reach].min() == pytest.approx(GOLDEN[f'minimum_{reach}'], abs=6e-5)


def test_interpolation_bound_holds_with_the_strict_constant():
    theta = rope_frequencies(128, 10000.0)
    strict = 0.5 * (theta**2).sum()
    assert strict == pytest.approx(GOLDEN['strict_constant'], abs=6e-6)
    assert 128 / (8 * np.log(1e4)) == pytest.approx(GOLDEN['paper_constant'], abs=6e-6)
    logit = lambda h, s: (h * np.exp(1j * np.multiply.outer(s, theta))).sum(-1).real
    ones = np.ones(64)
    deviation = abs(logit(ones, 0.5) - (logit(ones, 0.0) + logit(ones, 1.0)) / 2)
    assert deviation == pytest.approx(GOLDEN['deviation'], abs=6e-6) and deviation > GOLDEN['paper_bound']
    assert deviation <= strict / 4
    random = np.random.default_rng(0)
    worst = 0.0
    for _ in range(200):
        h, start, part = random.normal(size=64) + 1j * random.normal(size=64), random.integers(0, 2048), random.random()
        chord = (1 - part) * logit(h, start) + part * logit(h, start + 1)
        worst = max(worst, abs(logit(h, start + part) - chord) / (strict * np.abs(h).max() * part * (1 - part)))
    assert 0.01 < worst < 1


def test_errors():
    with pytest.raises(SpecError, match='at least 1, got 0.5'):
        pj.make('rope(freqs=pi(factor=0.5))', head_dim=8)
    with pytest.raises(SpecError, match="pi needs 'factor'"):
        pj.make('rope(freqs=pi())', head_dim=8)
