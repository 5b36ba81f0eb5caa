"""Dynamic NTK: bases by length, and one base per pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.double import Double
from posenc_jax.methods.dynamic_ntk import DynamicNTK, dynamic_ntk_frequencies
from posenc_jax.methods.ntk_aware import ntk_aware_base
from posenc_jax.methods.rope import rope, rope_frequencies
from tests.golden_files import golden
from tests.methods.pairs import attend, qkv
from tests.phases import FAR, error, wide, wide_theta
from tests.refusals import refused

GOLDEN = golden('dynamic_ntk')['values']
WIDTH, TRAINED = 8, 5


ENCODING = pj.make(
    'rope(freqs=dynamic_ntk(factor=2.0))', head_dim=WIDTH, train_len=TRAINED, causal=True
)
of_length = lambda length: dynamic_ntk_frequencies(
    128, 10000.0, jnp.asarray(length), train_len=2048, factor=2.0
)


@pytest.mark.parametrize('length, base', zip(GOLDEN['length'], GOLDEN['base']))
def test_golden_bases(length, base):
    np.testing.assert_allclose(of_length(length), rope_frequencies(128, base), rtol=2e-6)


@pytest.mark.full
def test_up_to_the_trained_length_it_is_rope():
    for length in (1, 2047, 2048):
        expected = Double.of(rope_frequencies(128, 10000.0))
        np.testing.assert_array_equal(of_length(length), expected)
    plain = attend(pj.make('rope()', head_dim=WIDTH, causal=True), *qkv(TRAINED, 2))
    np.testing.assert_allclose(attend(ENCODING, *qkv(TRAINED, 2)), plain, atol=1e-6)


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
    (q, k, v), tok = qkv(11, 2), pj.Tokens.of(length=11)
    base = ntk_aware_base(WIDTH, 10000.0, 1 + 2.0 * (11 - TRAINED) / TRAINED)
    for found, x in zip(ENCODING.project(q, k, v, tok, tok), (q, k)):
        np.testing.assert_allclose(found, rope(x, tok.pos, base), atol=1e-5)


SEGMENTS = pj.Tokens.of(segment=np.zeros((1, 6), int))
test_wrong_calls = refused() | {
    "needs 'train_len'": lambda: pj.make('rope(freqs=dynamic_ntk())', head_dim=8),
    'needs train_len': lambda: DynamicNTK(factor=2.0),
    '1 queries and 6 keys': lambda: ENCODING.project(
        qkv(1, 2)[0], *qkv(6, 2)[1:], SEGMENTS.slice(5, 1), SEGMENTS
    ),
}
