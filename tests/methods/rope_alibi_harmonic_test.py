"""RoPE with a harmonic penalty: the harmonic numbers at any distance, the three readings, and their
limits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.rope_alibi_harmonic import rope_alibi_harmonic_number
from tests.golden_files import golden_suite

SIZES = dict(heads=4, head_dim=8)


def run(spec, length=9, seed=0, **sizes):
    sizes = {**SIZES, **sizes}
    shape = 1, length, sizes['heads'], sizes['head_dim']
    q, k, v = (jax.random.normal(jax.random.key(seed + i), shape) for i in range(3))
    encoding, tok = pj.make(spec, causal=True, **sizes), pj.Tokens.of(length=length)
    arguments = encoding.project(q, k, v, tok, tok)
    return np.asarray(pj.attend(encoding, *arguments, applied=pj.TOKEN_STAGE))


def harmonic(n):
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])


def test_harmonic_numbers():
    numbers = np.asarray(rope_alibi_harmonic_number(jnp.arange(100001.0)))
    np.testing.assert_allclose(numbers, harmonic(100000), rtol=2e-7, atol=2e-7)
    far = 2.0**30
    expected = np.log(far) + np.euler_gamma
    np.testing.assert_allclose(rope_alibi_harmonic_number(jnp.float32(far)), expected, rtol=2e-7)


def test_between_whole_distances_the_recurrence_holds():
    x = jnp.linspace(0.0, 30.0, 400)
    np.testing.assert_allclose(
        rope_alibi_harmonic_number(x + 1), rope_alibi_harmonic_number(x) + 1 / (x + 1), atol=1e-6
    )
    np.testing.assert_allclose(
        rope_alibi_harmonic_number(jnp.float32(0.5)), 2 - 2 * np.log(2), atol=2e-7
    )
    slope = jax.vmap(jax.grad(rope_alibi_harmonic_number))(x)
    np.testing.assert_allclose(slope[0], np.pi**2 / 6, rtol=1e-5)
    assert (np.diff(slope) < 0).all()


def weights(values):
    """The weights of the last query, where all logits are zero."""
    length = len(values['weights'])
    encoding = pj.make('rope_alibi_harmonic()', causal=True, heads=1, head_dim=length + 1)
    tok = pj.Tokens.of(length=length)
    encoding.parts[0].slopes[...] = jnp.ones(1)
    zero, v = jnp.zeros((1, length, 1, length + 1)), jnp.eye(length, length + 1)[None, :, None]
    arguments = encoding.project(zero, zero, v, tok, tok)
    return pj.attend(encoding, *arguments, applied=pj.TOKEN_STAGE)[0, -1, 0, :length]


def slopes(_):
    return pj.make('rope_alibi_harmonic(mode="heads")', **SIZES).slopes[...]


test_golden = golden_suite('rope_alibi_harmonic') | {
    'harmonic': (lambda _: rope_alibi_harmonic_number(jnp.arange(5.0)), {'atol': 2e-7}),
    'weights': (weights, {'atol': 1e-6}),
    'slopes_of_heads': (slopes, {'rtol': 1e-6}),
}


def test_one_head_by_heads_is_rope_and_alibi_of_slope_one():
    expected = run('rope() | alibi(slopes=(1.0,))', heads=1)
    found = run('rope_alibi_harmonic(mode="heads")', heads=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def scored(encoding, s):
    tok = pj.Tokens.of(length=9)
    return encoding.logits(s, None, None, tok, tok, None, ())[0]


def test_product_divides_the_rotary_logits():
    encoding = pj.make('rope_alibi_harmonic(mode="product", weight=3.0)', **SIZES)
    s = jax.random.normal(jax.random.key(0), (2, 4, 9, 9))
    distance = np.abs(np.arange(9)[:, None] - np.arange(9))
    slopes = np.array([0.25, 0.0625, 0.015625, 0.00390625])
    expected = s / (1 + 3 * slopes[:, None, None] * harmonic(8)[distance])
    np.testing.assert_allclose(scored(encoding, s), expected, rtol=1e-6, atol=1e-7)


def test_the_penalty_grows_as_a_logarithm():
    """What a harmonic series is for: doubling the distance costs at most ln 2 more, where ALiBi's
    cost doubles.
    """
    steps = np.diff(np.asarray(rope_alibi_harmonic_number(2.0 ** jnp.arange(3.0, 24.0))))
    assert (steps < np.log(2) + 2e-6).all() and (np.diff(steps) > -1e-5).all()
    np.testing.assert_allclose(steps[-8:], np.log(2), atol=1e-4)


def test_trained_weights_are_per_head_and_held_at_zero():
    fixed, learned = (
        pj.make(f'rope_alibi_harmonic(learn_weight={learn})', **SIZES) for learn in (False, True)
    )
    assert not jax.tree.leaves(nnx.state(fixed, nnx.Param))
    s = jnp.zeros((1, 4, 9, 9))
    np.testing.assert_array_equal(scored(learned, s), scored(fixed, s))
    learned.weight[...] = jnp.array([-1.0, 0.0, 1.0, 2.0])
    found = np.asarray(scored(learned, s))[0]
    assert (found[:2] == 0).all() and (found[2:, 8, :8] < 0).all()
    gradient = jax.grad(lambda e: scored(e, s).sum())(learned)
    assert (np.asarray(gradient.weight[...]) < 0).all()
