"""Shares of rotary frequencies: the logits plane by plane in NumPy, random projections, a head that
attends by position, and the first slow plane.
"""

import functools

import jax
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.analyse.rope_frequency_usage import (
    ANALYSIS,
    first_slow_plane,
    rope_frequency_usage,
)
from tests.golden_files import golden
from tests.small_models import small_model

GOLDEN = golden('rope_frequency_usage')['values']
TOKENS = np.random.default_rng(0).integers(13, size=(2, 9)).astype(np.int32)
BASE = dict(vocab_size=13, train_len=16, layers=2, width=32, heads=4, kv_heads=2, encoding='rope()')


model_of = functools.partial(small_model, **BASE)


def test_the_first_plane_that_does_not_turn_once():
    inv_freq = GOLDEN['base'] ** (-np.arange(GOLDEN['planes']) / GOLDEN['planes'])
    assert first_slow_plane(inv_freq, GOLDEN['length']) == GOLDEN['slow']
    assert first_slow_plane(inv_freq, 1) == 0 and first_slow_plane(inv_freq[:3], 10**9) == 3


def test_shares_of_the_logits_are_those_of_the_planes():
    model = model_of()
    found = rope_frequency_usage(model, TOKENS, block=4)
    np.testing.assert_allclose(found.norms.sum(-1), 1, rtol=1e-6)
    tok = pj.Tokens.of(length=9)

    @jax.jit
    def first(model):
        x, (_, block) = model.embed(TOKENS, model.place(tok)), model.layers()[0]
        return block.attention.qkv(block.attention_norm(x))

    q, k, _ = (np.asarray(a, float) for a in first(model))
    turn = np.exp(1j * np.arange(9)[:, None] * 1e4 ** (-np.arange(4) / 4))[:, None]
    turned = lambda a: (a[..., :4] + 1j * a[..., 4:]) * turn
    q, k = turned(q), np.repeat(turned(k), 2, axis=2)
    parts = np.abs(np.einsum('bink,bjnk->bnijk', q, k.conj()).real)
    parts = parts[:, :, *np.tril_indices(9)].sum((0, 2))
    expected = parts / parts.sum(-1, keepdims=True)
    np.testing.assert_allclose(found.logits[0], expected, rtol=1e-4)
    norms = np.abs(q).mean((0, 1)) * np.abs(k).mean((0, 1))
    np.testing.assert_allclose(found.norms[0], norms / norms.sum(-1, keepdims=True), rtol=1e-4)


@pytest.mark.full
def test_random_projections_use_all_frequencies_alike():
    tokens = np.random.default_rng(0).integers(13, size=(4, 16)).astype(np.int32)
    found = rope_frequency_usage(model_of(width=64, heads=2, kv_heads=1), tokens)
    np.testing.assert_allclose(found.norms.mean((0, 1)), 1 / 16, rtol=0.35)
    assert found.slow == int((1e4 ** (-np.arange(16) / 16) * 16 >= 2 * np.pi).sum()) == 2


@pytest.mark.full
def test_a_head_without_slow_features_stands_out(tmp_path):
    model = model_of()
    keep = np.tile(np.arange(4) < 1, 2)  # the fastest plane, of head 2 alone
    w = np.array(model.blocks[0].attention.w_q[...])
    w[1, :, 2] *= keep
    model.blocks[0].attention.w_q[...] = w
    found = rope_frequency_usage(model, TOKENS, block=4)
    assert found.fastest()[1, 2] == pytest.approx(1) and found.fastest()[1, 1] < 0.6
    report = ANALYSIS.report({'rope()': found})
    assert '(layer, head): (2, 2) 1.00' in report.text() and len(report.rows) == 2
    assert report.write(tmp_path)[1].stat().st_size > 1000


def test_wrong_input():
    with pytest.raises(ValueError, match='rope_frequency_usage needs .* got alibi'):
        rope_frequency_usage(model_of(encoding='alibi()'), TOKENS)
    with pytest.raises(ValueError, match='defined for causal attention'):
        rope_frequency_usage(model_of(kind='encoder'), TOKENS)
    with pytest.raises(ValueError, match='block must be at least 1, got 0'):
        rope_frequency_usage(model_of(), TOKENS, block=0)
