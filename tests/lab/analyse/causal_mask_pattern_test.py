"""The pattern of the causal mask: closed forms and a simulation of them, relative parts, and random
models with and without rotation.
"""

import numpy as np
import pytest

from posenc_jax.lab.analyse.causal_mask_pattern import (
    ANALYSIS,
    causal_mask_pattern,
    mask_cosine,
    recency,
    relative_part,
)
from tests.golden_files import golden
from tests.small_models import small_model

GOLDEN = golden('causal_mask_pattern')['values']
T, V = 32, 512
TOKENS = np.random.default_rng(0).integers(V, size=(64, T)).astype(np.int32)


def test_closed_forms_and_a_simulation():
    i, j = GOLDEN['i'], np.array(GOLDEN['j'])
    np.testing.assert_allclose(mask_cosine(i, j, residual=False), GOLDEN['output'], atol=5e-5)
    np.testing.assert_allclose(mask_cosine(i, j, residual=True), GOLDEN['residual'], atol=5e-6)
    x = np.random.default_rng(0).normal(size=(i, 4096))
    mean = x.cumsum(0) / np.arange(1, i + 1)[:, None]
    for h, residual, error in ((mean, False, 0.03), (x + mean, True, 0.06)):
        unit = h / np.linalg.norm(h, axis=1, keepdims=True)
        others = np.arange(1, i)
        expected = mask_cosine(i, others, residual=residual)
        np.testing.assert_allclose(unit[:-1] @ unit[-1], expected, atol=error)


def test_relative_parts():
    place = np.arange(6)
    mean, share = relative_part(np.cos(place[:, None] - place))
    np.testing.assert_allclose(mean, np.cos(place), atol=1e-12)
    assert share < 1e-12
    assert relative_part(np.full((6, 6), 3.0))[1] == 0
    s = np.random.default_rng(0).normal(size=(6, 6))
    rest, seen = [], []
    for d in range(6):
        diagonal = np.diagonal(s, -d)
        rest, seen = [*rest, *(diagonal - diagonal.mean())], [*seen, *diagonal]
    assert relative_part(s)[1] == pytest.approx(np.var(rest) / np.var(seen))


def model(encoding, layers=2):
    """Keys are projected like queries, so that a logit tells how alike two vectors are; logits are
    small, so that attention is nearly uniform.
    """
    sizes = dict(vocab_size=V, train_len=T, width=32, heads=2, embedding_scale=0.1)
    found = small_model(**sizes, layers=layers, encoding=encoding)
    for block in found.blocks:
        block.attention.w_k[...] = block.attention.w_q[...]
        block.attention.w_q[...] = 0.05 * block.attention.w_q[...]
    return found


def test_the_mask_favours_near_keys_from_the_second_layer_on(tmp_path):
    found = causal_mask_pattern(model('nope()'), TOKENS, batch=64)
    np.testing.assert_allclose(found.score, found.content, atol=1e-6)
    first, second = (layer.mean(0)[-1] for layer in found.content)
    assert np.abs(first[:-1]).max() < 0.15 * first[-1]  # flat
    expected = mask_cosine(T, np.arange(1, T + 1), residual=False)
    np.testing.assert_allclose(second / second[-1], expected, atol=0.1)
    assert recency(found.content[1]) > 5 * abs(recency(found.content[0]))
    seen = found.mean_content[..., *np.tril_indices(T)]
    np.testing.assert_allclose(seen, seen[..., :1].repeat(seen.shape[-1], -1), atol=1e-5)
    assert found.shares['mean_content'].max() < 1e-6
    report = ANALYSIS.report({'nope()': found})
    assert len(report.rows) == 2 and report.write(tmp_path)[1].stat().st_size > 1000


@pytest.mark.full
def test_rotation_alone_is_relative_and_with_the_mask_it_is_not():
    found = causal_mask_pattern(model('rope()'), TOKENS, batch=64)
    shares = found.shares
    assert shares['mean_content'].max() < 1e-6
    assert shares['score'][1].min() > 3 * shares['score'][0].max()
    assert np.abs(found.score - found.content).max() > 1e-3
    halves = [causal_mask_pattern(model('rope()'), part, batch=32) for part in np.split(TOKENS, 2)]
    both = sum(half.score[1, 1] for half in halves) / 2
    np.testing.assert_allclose(found.score[1, 1], both, atol=1e-5)


@pytest.mark.full
def test_an_encoding_that_reads_tokens_has_no_pattern_of_its_own():
    cfg = dict(vocab_size=V, train_len=T, layers=1, width=16, heads=2, encoding='path()')
    found = causal_mask_pattern(small_model(**cfg), TOKENS[:4], batch=4)
    assert np.isnan(found.mean_content).all() and np.isnan(found.shares['mean_content']).all()
    assert '-' in ANALYSIS.report({'path()': found}).text()


def test_wrong_input():
    with pytest.raises(ValueError, match='compares places, got 1 token'):
        causal_mask_pattern(model('nope()'), TOKENS[:, :1])
    cfg = dict(vocab_size=V, train_len=T, layers=1, width=16, heads=2, encoding='nope()')
    encoder = small_model(**cfg, kind='encoder')
    with pytest.raises(ValueError, match='defined for causal attention'):
        causal_mask_pattern(encoder, TOKENS)
    with pytest.raises(ValueError, match='at most 2048 tokens, got 2049'):
        causal_mask_pattern(model('nope()'), np.zeros((1, 2049), np.int32))
