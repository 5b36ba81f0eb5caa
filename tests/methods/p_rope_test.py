"""p-RoPE: how many planes rotate, which, and what does not depend on positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.p_rope import p_rope_frequencies
from posenc_jax.methods.rope import rope_frequencies
from tests.golden_files import golden

GOLDEN = golden('p_rope')['values']


@pytest.mark.parametrize(
    'width, p, rotating', zip(GOLDEN['width'], GOLDEN['p'], GOLDEN['rotating'])
)
def test_golden_counts(width, p, rotating):
    inv_freq, theta = p_rope_frequencies(width, 1e4, p), rope_frequencies(width, 1e4)
    np.testing.assert_array_equal(inv_freq[:rotating], theta[:rotating])
    assert (inv_freq[rotating:] == 0).all()
    reversed_, still = p_rope_frequencies(width, 1e4, p, keep='lowest'), width // 2 - rotating
    np.testing.assert_array_equal(reversed_[still:], theta[still:])
    assert (reversed_[:still] == 0).all()


def test_limits_are_rope_and_nope():
    x, pos = jax.random.normal(jax.random.key(0), (1, 5, 2, 16)), jnp.arange(5)[None]
    rotated = lambda spec: pj.make(spec, head_dim=16).rotate(x, pos)
    np.testing.assert_array_equal(rotated('rope(freqs=p_rope(p=1.0))'), rotated('rope()'))
    np.testing.assert_array_equal(rotated('rope(freqs=p_rope(p=0))'), x)


def test_unrotated_planes_carry_content_without_position():
    part, tok = pj.make('rope(freqs=p_rope(p=0.5))', head_dim=8), pj.Tokens.of(length=6)
    still = np.asarray([0, 0, 1, 1] * 2, np.float32)  # planes t and t + 4
    q, k = (jax.random.normal(jax.random.key(i), (1, 6, 1, 8)) * still for i in range(2))
    moved = part.project(q, k, k, tok, tok)
    np.testing.assert_allclose(moved[0], q, atol=1e-7)
    np.testing.assert_allclose(moved[1], k, atol=1e-7)


def test_the_compressed_ablation_is_partial_rope():
    inv_freq = p_rope_frequencies(16, 1e4, 0.5, keep='compressed')
    np.testing.assert_array_equal(inv_freq[:4], rope_frequencies(8, 1e4))
    assert (inv_freq[4:] == 0).all()
    assert not p_rope_frequencies(16, 1e4, 0.0, keep='compressed').any()
