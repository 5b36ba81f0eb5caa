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
from tests.golden_files import golden_suite
from tests.lab.analyse.by_hand import check_report
from tests.small_models import small_model

T, V = 32, 512
TOKENS = np.random.default_rng(0).integers(V, size=(64, T)).astype(np.int32)

test_golden = golden_suite(
    'causal_mask_pattern',
    {
        'output': (lambda g: mask_cosine(g['i'], np.array(g['j']), residual=False), {'atol': 5e-5}),
        'residual': (
            lambda g: mask_cosine(g['i'], np.array(g['j']), residual=True),
            {'atol': 5e-6},
        ),
    },
)


@pytest.mark.parametrize('residual, error', [(False, 0.03), (True, 0.06)])
def test_a_simulation_has_the_cosines_of_the_closed_form(residual, error):
    x, last = np.random.default_rng(0).normal(size=(64, 4096)), 64
    mean = x.cumsum(0) / np.arange(1, last + 1)[:, None]
    h = x + mean if residual else mean
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    expected = mask_cosine(last, np.arange(1, last), residual=residual)
    np.testing.assert_allclose(unit[:-1] @ unit[-1], expected, atol=error)


def test_relative_parts():
    place = np.arange(6)
    mean, share = relative_part(np.cos(place[:, None] - place))
    np.testing.assert_allclose(mean, np.cos(place), atol=1e-12)
    assert share < 1e-12
    assert relative_part(np.full((6, 6), 3.0))[1] == 0
    s = np.random.default_rng(0).normal(size=(6, 6))
    diagonals = [np.diagonal(s, -d) for d in range(6)]
    rest = np.concatenate([diagonal - diagonal.mean() for diagonal in diagonals])
    assert relative_part(s)[1] == pytest.approx(rest.var() / np.concatenate(diagonals).var())


def model(encoding):
    """Keys are projected like queries, so that a logit tells how alike two vectors are; logits are
    small, so that attention is nearly uniform.
    """
    sizes = dict(vocab_size=V, train_len=T, layers=2, width=32, heads=2, embedding_scale=0.1)
    found = small_model(**sizes, encoding=encoding)
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
    check_report(ANALYSIS, {'nope()': found}, tmp_path, rows=2)


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
