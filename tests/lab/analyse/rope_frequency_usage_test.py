"""Shares of rotary frequencies: the logits plane by plane in NumPy, random projections, a head that
attends by position, and the first slow plane.
"""

import numpy as np
import pytest

from posenc_jax.lab.analyse.rope_frequency_usage import (
    ANALYSIS,
    first_slow_plane,
    rope_frequency_usage,
)
from tests.golden_files import golden_suite
from tests.lab.analyse.by_hand import check_report, layers_of, model_of

TOKENS = np.random.default_rng(0).integers(13, size=(2, 9)).astype(np.int32)


def inv_freq(base=1e5, planes=32):
    return base ** (-np.arange(planes) / planes)


test_golden = golden_suite(
    'rope_frequency_usage',
    {'slow': lambda g: first_slow_plane(inv_freq(g['base'], g['planes']), g['length'])},
)


def test_the_first_plane_that_does_not_turn_once():
    assert first_slow_plane(inv_freq(), 1) == 0 and first_slow_plane(inv_freq()[:3], 10**9) == 3


def test_shares_of_the_logits_are_those_of_the_planes():
    model = model_of()
    found = rope_frequency_usage(model, TOKENS, block=4)
    np.testing.assert_allclose(found.norms.sum(-1), 1, rtol=1e-6)
    q, k = (np.asarray(a, float) for a in next(layers_of(model, TOKENS))[1:3])
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
    says = '(layer, head): (2, 2) 1.00'
    check_report(ANALYSIS, {'rope()': found}, tmp_path, rows=2, says=says)
