"""Scalable softmax: the number of keys under packing and padding, its place in a chain, encoders,
and its claim.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.methods.ssmax import ssmax_factor
from posenc_jax.protocol.capabilities import first_carry
from tests.golden_files import golden_suite

N, H = 4, 8
ONES = jnp.ones((1, N, 5, 5))


def scored(spec, tok, s=ONES, **options):
    encoding = pj.make(spec, heads=N, head_dim=H, **options)
    q, *_, tq, tk = encoding.project(*[jnp.zeros((1, tok.length, N, H))] * 3, tok, tok)
    carry = first_carry(encoding, q.swapaxes(1, 2), tq)
    return np.asarray(encoding.logits(s, None, None, tq, tk, None, carry)[0])


def factor(values):
    """The factor of a gain of one; a gain of a half has half of it."""
    found = ssmax_factor(jnp.array([1.0, 0.5]), jnp.array([values['keys']]))[0, :, :, 0]
    np.testing.assert_allclose(found[1], np.array(values['factor']) / 2, rtol=1e-6)
    return found[0]


test_golden = golden_suite('ssmax', {'factor': factor}, rtol=1e-6)


PACKED = dict(segment=[[0, 0, 1, 1, 1]])
MOVED = dict(positions=[[7, 9, 100, 3, 3]])


@pytest.mark.parametrize(
    'causal, about, keys',
    [
        (True, dict(length=5), [1, 2, 3, 4, 5]),
        (True, PACKED, [1, 2, 1, 2, 3]),
        (True, dict(valid=[[False, False, True, True, True]]), [1, 1, 1, 2, 3]),
        (True, MOVED, [1, 2, 3, 4, 5]),
        (False, dict(length=5), [5] * 5),
        (False, PACKED, [2, 2, 3, 3, 3]),
        (False, dict(valid=[[True, True, True, False, False]]), [3] * 3),
        (False, MOVED, [5] * 5),
    ],
)
def test_keys_are_counted_and_not_measured(causal, about, keys):
    """An encoder counts the whole document."""
    options = {} if causal else dict(causal=False)
    found = scored(f'ssmax(bidirectional={not causal})', pj.Tokens.of(**about), **options)
    np.testing.assert_allclose(found[0, 0, : len(keys), 0], np.log(keys), rtol=1e-6)


@pytest.mark.full
def test_tiles_of_an_encoder_equal_the_whole():
    encoding = pj.make('bam() | ssmax(bidirectional=True)', heads=N, causal=False)
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 20, N, H)) for i in range(3))
    tok = pj.Tokens.of(segment=np.arange(20)[None] // 7 + np.zeros((2, 1), int))
    arguments = encoding.project(q, k, v, tok, tok)
    run = lambda **how: pj.attend(encoding, *arguments, **how, applied=pj.TOKEN_STAGE)
    np.testing.assert_allclose(run(block=(8, 3)), run(implementation='dense'), atol=2e-6)


def test_what_stands_before_it_is_multiplied():
    tok, s = pj.Tokens.of(length=5), jax.random.normal(jax.random.key(0), (1, N, 5, 5))
    factor = np.log(np.arange(1, 6))[:, None]
    bias = np.asarray(pj.make('bam()', heads=N).bias(tok.pos, tok.pos))
    np.testing.assert_allclose(scored('bam() | ssmax()', tok, s), (s + bias) * factor, atol=1e-6)
    np.testing.assert_allclose(scored('ssmax() | bam()', tok, s), s * factor + bias, atol=1e-6)
    np.testing.assert_allclose(scored('ssmax(gain=0.5)', tok, s), s * factor / 2, atol=1e-6)


@pytest.mark.full
def test_attention_does_not_fade_as_keys_are_added():
    """One key ahead of all others by a fixed logit z: plain softmax gives it e^z / (e^z + n - 1),
    this n^z / (n^z + n - 1).
    """

    def weight(spec, n, z=1.5):
        tok = pj.Tokens.of(length=n)
        s = jnp.zeros((1, N, 1, n)).at[..., 3].set(z)
        tq = tok.slice(n - 1, 1)
        encoding = pj.make(spec, heads=N)
        scored, _ = encoding.logits(s, None, None, tq, tok, None, ())
        return float(jax.nn.softmax(scored)[0, 0, 0, 3])

    plain, scaled = ([weight(spec, n) for n in (16, 256, 4096)] for spec in ('nope()', 'ssmax()'))
    assert plain[0] > 0.2 and plain[2] < 0.002
    assert scaled[0] < scaled[1] < scaled[2]
    assert scaled[2] == pytest.approx(4096**1.5 / (4096**1.5 + 4095), rel=1e-5)


def test_a_refused_logit_stays_refused():
    """Also of the first token, whose factor is 0."""
    refused = jnp.full((1, N, 3, 3), -jnp.inf)
    tok = pj.Tokens.of(length=3)
    scored, _ = pj.make('ssmax()', heads=N).logits(refused, None, None, tok, tok, None, ())
    assert jnp.isneginf(scored).all()


@pytest.mark.full
def test_a_key_that_was_refused_stays_refused_where_the_factor_is_zero():
    """`tra` gives -inf, and the logarithm of the first token's one key is 0."""
    encoding = pj.make('tra() | ssmax()', heads=2, head_dim=4, model_dim=8, causal=True)
    tok = pj.Tokens.of(length=9)
    q, k, v = (jax.random.normal(jax.random.key(n), (1, 9, 2, 4)) for n in range(3))
    arguments = encoding.project(q, k, v, tok, tok, jax.random.normal(jax.random.key(3), (1, 9, 8)))
    q, k = (a.swapaxes(1, 2) for a in arguments[:2])
    products = scaled_dot_product(q, k)
    assert (np.asarray(products)[0, :, 0, 0] <= 0).any()  # a first token that refuses itself
    assert np.isfinite(pj.attend(encoding, *arguments, applied=pj.TOKEN_STAGE)).all()
