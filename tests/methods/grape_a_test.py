"""Additive GRAPE: biases at the start by hand, ALiBi at constant gates, and a loop over pairs."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden, golden_suite
from tests.methods.pair_logits import logits
from tests.methods.pairs import draw, qkv
from tests.refusals import refused

GOLDEN = golden('grape_a')
GATES = ('key', 'query', 'both')
N, K, H, L = 4, 2, 8, 9
Q, KEYS, _ = qkv(L, N, K, H)


def build(gate='key', **context):
    sizes = dict(heads=N, head_dim=H) | context
    return pj.make(f'grape_a(gate={gate!r})', rngs=nnx.Rngs(0), **sizes)


def bias_of_zeros(gate):
    zero = jnp.zeros((1, GOLDEN['far'] + 1, GOLDEN['heads'], H))
    return logits(build(gate, heads=GOLDEN['heads']), zero, zero)[0, :, -1]


test_golden = golden_suite('grape_a', atol=1e-7, rtol=1e-6) | {
    'omega': lambda: build().omega[0],
    'slopes': lambda: build(heads=2).slopes[...],
    'bias.*': lambda _, gate: bias_of_zeros(gate)[:, 0],
}


def by_pairs(part, gate, pos):
    """What is added to the logits, by the definition, in float64."""
    soft = lambda a: np.log1p(np.exp(a))
    unit = lambda a: a / np.linalg.norm(a)
    read = lambda variable: np.asarray(variable[...], np.float64)
    out = np.zeros((1, N, L, L))
    for h, i, j in np.ndindex(N, L, L):
        gates = 0.0
        if gate != 'query':
            gates += soft(unit(read(part.of_key)[h]) @ KEYS[0, j, h // (N // K)] / H**0.5)
        if gate != 'key':
            gates += soft(unit(read(part.of_query)[h]) @ Q[0, i, h] / H**0.5)
        slope = soft(read(part.omega)[h]) * 2.0 ** (-8 * (h + 1) / N)
        out[0, h, i, j] = -abs(pos[i] - pos[j]) * slope * gates
    return out


@pytest.mark.parametrize('gate', GATES)
def test_biases_equal_a_loop_over_pairs(gate):
    part, pos = build(gate), 3 * np.arange(L) + 5
    part.omega[...] += jnp.asarray(draw(5, N))
    tok = pj.Tokens.of(positions=pos[None])
    plain = logits(pj.make('nope()'), Q, KEYS, tok)
    found = logits(part, Q, KEYS, tok)
    np.testing.assert_allclose(found - plain, by_pairs(part, gate, pos), atol=1e-5)


@pytest.mark.parametrize('gate', GATES)
def test_constant_gates_are_alibi(gate):
    """Gates of zero vectors are ln 2, in each of the two places."""
    part, zero = build(gate), np.zeros_like(KEYS)
    slope = np.log(2) * (2 if gate == 'both' else 1)
    part.omega[...] = jnp.full(N, np.log(np.expm1(1 / slope)))
    alibi = logits(pj.make('alibi()', heads=N), 0 * Q, zero)
    np.testing.assert_allclose(logits(part, 0 * Q, zero), alibi, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize('gate', GATES)
def test_the_bias_is_never_positive_and_that_of_a_token_itself_is_zero(gate):
    bias = logits(build(gate), Q, KEYS) - logits(pj.make('nope()'), Q, KEYS)
    assert bias.max() < 1e-6
    np.testing.assert_allclose(np.diagonal(bias, axis1=2, axis2=3), 0.0, atol=1e-6)


def test_the_length_of_a_direction_does_not_count():
    part, longer = build(), build()
    longer.of_key[...] *= 7.0
    np.testing.assert_allclose(logits(longer, Q, KEYS), logits(part, Q, KEYS), atol=1e-5)


def test_gates_read_vectors_that_are_not_turned():
    rope, context = pj.make('rope()', head_dim=H), dict(heads=N, head_dim=H)
    with pytest.raises(SpecError, match='write grape_a before rope'):
        pj.make('rope() | grape_a()', rngs=nnx.Rngs(0), **context)
    tok = pj.Tokens.of(length=L)
    found = logits(pj.chain(build(), rope), Q, KEYS, tok)
    bias = logits(build(), Q, KEYS, tok) - logits(pj.make('nope()'), Q, KEYS, tok)
    np.testing.assert_allclose(found - logits(rope, Q, KEYS, tok), bias, atol=1e-5)


test_wrong_calls = refused() | {
    "gate='keys' is not one of 'key', 'query', 'both'; did you mean": lambda: build('keys'),
    'built for 1 heads of width 8, the queries have 4 of width 8': lambda: logits(
        build(heads=1), Q, KEYS[:, :, :1]
    ),
}
