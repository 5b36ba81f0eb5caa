"""RoPE with a harmonic penalty: the harmonic numbers at any distance, the three readings, and their
limits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.rope_alibi_harmonic import MODES, harmonic_number
from tests.golden_files import golden

GOLDEN = golden('rope_alibi_harmonic')
SIZES = dict(heads=4, head_dim=8)


def run(spec, length=9, seed=0, **sizes):
    sizes = {**SIZES, **sizes}
    q, k, v = (
        jax.random.normal(jax.random.key(seed + i), (1, length, sizes['heads'], sizes['head_dim']))
        for i in range(3)
    )
    encoding, tok = pj.make(spec, causal=True, **sizes), pj.Tokens.of(length=length)
    return np.asarray(
        pj.attend(encoding, *encoding.project(q, k, v, tok, tok), applied=pj.TOKEN_STAGE)
    )


def harmonic(n):
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])


def test_harmonic_numbers():
    np.testing.assert_allclose(harmonic_number(jnp.arange(5.0)), GOLDEN['harmonic'], atol=2e-7)
    numbers = np.asarray(harmonic_number(jnp.arange(100001.0)))
    np.testing.assert_allclose(numbers, harmonic(100000), rtol=2e-7, atol=2e-7)
    far = 2.0**30
    np.testing.assert_allclose(
        harmonic_number(jnp.float32(far)), np.log(far) + np.euler_gamma, rtol=2e-7
    )


def test_between_whole_distances_the_recurrence_holds():
    x = jnp.linspace(0.0, 30.0, 400)
    np.testing.assert_allclose(harmonic_number(x + 1), harmonic_number(x) + 1 / (x + 1), atol=1e-6)
    np.testing.assert_allclose(harmonic_number(jnp.float32(0.5)), 2 - 2 * np.log(2), atol=2e-7)
    slope = jax.vmap(jax.grad(harmonic_number))(x)
    np.testing.assert_allclose(slope[0], np.pi**2 / 6, rtol=1e-5)
    assert (np.diff(slope) < 0).all()


@pytest.mark.full
def test_logits_of_zero_have_the_weights_of_the_penalty():
    length = len(GOLDEN['weights'])
    encoding, tok = (
        pj.make('rope_alibi_harmonic()', causal=True, heads=1, head_dim=length + 1),
        pj.Tokens.of(length=length),
    )
    encoding.parts[0].slopes[...] = jnp.ones(1)
    zero = jnp.zeros((1, length, 1, length + 1))
    v = jnp.eye(length, length + 1)[None, :, None]
    weights = pj.attend(
        encoding, *encoding.project(zero, zero, v, tok, tok), applied=pj.TOKEN_STAGE
    )[0, -1, 0, :length]
    np.testing.assert_allclose(weights, GOLDEN['weights'], atol=1e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize('mode', MODES)
def test_without_weight_it_is_rope(mode):
    np.testing.assert_allclose(
        run(f'rope_alibi_harmonic(mode={mode!r}, weight=0.0)'), run('rope()'), atol=1e-6
    )
    assert np.abs(run(f'rope_alibi_harmonic(mode={mode!r})') - run('rope()')).max() > 1e-2


def test_one_head_by_heads_is_rope_and_alibi_of_slope_one():
    expected = run('rope() | alibi(slopes=(1.0,))', heads=1)
    np.testing.assert_allclose(
        run('rope_alibi_harmonic(mode="heads")', heads=1), expected, atol=1e-6
    )
    slopes = pj.make('rope_alibi_harmonic(mode="heads")', **SIZES).slopes[...]
    np.testing.assert_allclose(slopes, GOLDEN['slopes_of_heads'], rtol=1e-6)


def test_product_divides_the_rotary_logits():
    encoding, tok = (
        pj.make('rope_alibi_harmonic(mode="product", weight=3.0)', **SIZES),
        pj.Tokens.of(length=9),
    )
    s = jax.random.normal(jax.random.key(0), (2, 4, 9, 9))
    scored, _ = encoding.logits(s, None, None, tok, tok, None, ())
    distance = np.abs(np.arange(9)[:, None] - np.arange(9))
    slopes = np.array([0.25, 0.0625, 0.015625, 0.00390625])
    np.testing.assert_allclose(
        scored, s / (1 + 3 * slopes[:, None, None] * harmonic(8)[distance]), rtol=1e-6, atol=1e-7
    )


def test_the_penalty_grows_as_a_logarithm():
    """What a harmonic series is for: doubling the distance costs at most ln 2 more, where ALiBi's
    cost doubles.
    """
    steps = np.diff(np.asarray(harmonic_number(2.0 ** jnp.arange(3.0, 24.0))))
    assert (steps < np.log(2) + 2e-6).all() and (np.diff(steps) > -1e-5).all()
    np.testing.assert_allclose(steps[-8:], np.log(2), atol=1e-4)


def test_trained_weights_are_per_head_and_held_at_zero():
    fixed, learned = (
        pj.make(f'rope_alibi_harmonic(learn_weight={learn})', **SIZES) for learn in (False, True)
    )
    assert not jax.tree.leaves(nnx.state(fixed, nnx.Param))
    tok, s = pj.Tokens.of(length=9), jnp.zeros((1, 4, 9, 9))
    np.testing.assert_array_equal(
        learned.logits(s, None, None, tok, tok, None, ())[0],
        fixed.logits(s, None, None, tok, tok, None, ())[0],
    )
    learned.weight[...] = jnp.array([-1.0, 0.0, 1.0, 2.0])
    scored = np.asarray(learned.logits(s, None, None, tok, tok, None, ())[0])[0]
    assert (scored[:2] == 0).all() and (scored[2:, 8, :8] < 0).all()
    gradient = jax.grad(lambda e: e.logits(s, None, None, tok, tok, None, ())[0].sum())(learned)
    assert (np.asarray(gradient.weight[...]) < 0).all()


def test_errors():
    with pytest.raises(ValueError, match='must be at least 0, got -0.5'):
        pj.make('rope_alibi_harmonic(weight=-0.5)', **SIZES)
    with pytest.raises(ValueError, match="'distance', 'heads', 'product'"):
        pj.make("rope_alibi_harmonic(mode='head')", **SIZES)
    with pytest.raises(ValueError, match='rope turns features in pairs: 7 of head_dim=7'):
        pj.make('rope_alibi_harmonic()', heads=4, head_dim=7)
    with pytest.raises(ValueError, match='both rotate queries and keys'):
        pj.make('rope() | rope_alibi_harmonic()', **SIZES)
