"""Dynamic NTK: bases by length, one base per pass, decoding from raw keys, documents and
padding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.double import Double
from posenc_jax.methods.dynamic_ntk import DynamicNTK, dynamic_ntk_frequencies
from posenc_jax.methods.ntk_aware import ntk_aware_base
from posenc_jax.methods.rope import rope, rope_frequencies
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden
from tests.phases import FAR, error, wide, wide_theta

GOLDEN = golden('dynamic_ntk')['values']
WIDTH, TRAINED = 8, 5


def encoding(factor=2.0):
    return pj.make(
        f'rope(freqs=dynamic_ntk(factor={factor}))', head_dim=WIDTH, train_len=TRAINED, causal=True
    )


def qkv(length, batch=1):
    return tuple(jax.random.normal(jax.random.key(i), (batch, length, 2, WIDTH)) for i in range(3))


@jax.jit
def run(tok, *arrays):
    part = encoding()
    return pj.attend(part, *part.project(*arrays, tok, tok), applied=pj.TOKEN_STAGE)


@pytest.mark.parametrize('length, base', zip(GOLDEN['length'], GOLDEN['base']))
def test_golden_bases(length, base):
    inv_freq = dynamic_ntk_frequencies(
        128, 10000.0, jnp.asarray(length), train_len=2048, factor=2.0
    )
    np.testing.assert_allclose(inv_freq, rope_frequencies(128, base), rtol=2e-6)


@pytest.mark.full
def test_up_to_the_trained_length_it_is_rope():
    for length in (1, 2047, 2048):
        inv_freq = dynamic_ntk_frequencies(
            128, 10000.0, jnp.asarray(length), train_len=2048, factor=2.0
        )
        np.testing.assert_array_equal(inv_freq, Double.of(rope_frequencies(128, 10000.0)))
    q, k, v = qkv(TRAINED)
    tok, plain = pj.Tokens.of(length=TRAINED), pj.make('rope()', head_dim=WIDTH, causal=True)
    np.testing.assert_allclose(
        run(tok, q, k, v),
        pj.attend(plain, *plain.project(q, k, v, tok, tok), applied=pj.TOKEN_STAGE),
        atol=1e-6,
    )


@pytest.mark.parametrize('factor, width', [(1.0, 64), (2.0, 128), (3.3, 256)])
def test_phases_are_exact_at_two_million(factor, width):
    part = pj.make(f'rope(freqs=dynamic_ntk(factor={factor}))', head_dim=width, train_len=2048)
    angles = jax.jit(lambda length: part.angles(jnp.asarray(FAR)[None], length)[0])
    for length in (2048, 2049, 100_000, 2_000_001):
        ratio = 1 + wide(factor) * (length - 2048) / 2048
        inv_freq = wide_theta(width, 1e4) * ratio ** (-wide(np.arange(0, width, 2)) / (width - 2))
        assert error(angles(jnp.asarray([[length]])), FAR, inv_freq) < 1e-6


@pytest.mark.full
def test_all_positions_of_a_pass_have_the_base_of_its_length():
    q, k, v = qkv(11)
    tok = pj.Tokens.of(length=11)
    q2, k2, *_ = encoding().project(q, k, v, tok, tok)
    base = ntk_aware_base(WIDTH, 10000.0, 1 + 2.0 * (11 - TRAINED) / TRAINED)
    np.testing.assert_allclose(q2, rope(q, tok.pos, base), atol=1e-5)
    np.testing.assert_allclose(k2, rope(k, tok.pos, base), atol=1e-5)


@jax.jit
def decoded(q, k, v):
    """Every query against the raw keys held so far, as the cache hands them over."""
    part, tok = encoding(), pj.Tokens.of(length=q.shape[1])

    def step(number):
        held = pj.Tokens.of(valid=tok.index <= number)
        one = jax.lax.dynamic_slice_in_dim(q, number, 1, axis=1)
        return pj.attend(
            part, *part.project(one, k, v, tok.slice(number, 1), held), applied=pj.TOKEN_STAGE
        )[:, 0]

    return jax.lax.map(step, jnp.arange(q.shape[1]))


@pytest.mark.full
def test_a_step_depends_on_the_length_so_that_one_pass_over_all_is_something_else():
    q, k, v = qkv(12)
    whole, steps = run(pj.Tokens.of(length=12), q, k, v)[0], decoded(q, k, v)[:, 0]
    np.testing.assert_allclose(steps[-1], whole[-1], atol=2e-6)
    assert np.abs(steps[TRAINED:-1] - whole[TRAINED:-1]).max() > 1e-2


@pytest.mark.full
def test_rows_and_documents_have_their_own_length():
    q, k, v = qkv(14)
    twice = lambda *parts: jnp.concatenate(parts, axis=1)
    alone = {n: run(pj.Tokens.of(length=n), q[:, :n], k[:, :n], v[:, :n]) for n in (4, 14)}
    # The first row is two documents, the second row is the short one behind padding.
    rows = lambda a: jnp.concatenate([twice(a[:, :4], a), twice(jnp.full_like(a, 3.0), a[:, :4])])
    tok = pj.Tokens.of(
        segment=np.repeat([[3, 1], [0, 0]], [4, 14], axis=1),
        valid=np.arange(18)[None] >= np.array([[0], [14]]),
    )
    out = run(tok, *map(rows, (q, k, v)))
    np.testing.assert_allclose(out[:1], twice(alone[4], alone[14]), atol=2e-6)
    np.testing.assert_allclose(out[1:, 14:], alone[4], atol=2e-6)


def test_one_program_for_every_length():
    traces = []

    @jax.jit
    def frequencies(length):
        traces.append(length)
        return dynamic_ntk_frequencies(16, 10000.0, length, train_len=4)

    for length in (3, 5, 9):
        expected = rope_frequencies(16, ntk_aware_base(16, 10000.0, max(1.0, length / 4)))
        np.testing.assert_allclose(frequencies(jnp.asarray(length)), expected, rtol=2e-6)
    assert len(traces) == 1


def test_errors():
    with pytest.raises(SpecError, match="needs 'train_len'"):
        pj.make('rope(freqs=dynamic_ntk())', head_dim=8)
    with pytest.raises(ValueError, match='needs train_len'):
        DynamicNTK(factor=2.0)
    q, k, v = qkv(6)
    tok = pj.Tokens.of(segment=np.zeros((1, 6), int))
    with pytest.raises(ValueError, match='1 queries and 6 keys'):
        encoding().project(q[:, :1], k, v, tok.slice(5, 1), tok)
