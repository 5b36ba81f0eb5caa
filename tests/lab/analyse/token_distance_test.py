"""Token distance: streamed sums against the whole matrix in float64, and a case worked out by
hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.lab.analyse.correlation import Moments, spearman
from posenc_jax.lab.analyse.token_distance import (
    TokenDistance,
    distance_sums,
    plane_logits,
    positional_heads,
    token_distance,
    without_heads,
)
from posenc_jax.methods.rope import rope
from tests.golden_files import golden_suite
from tests.lab.analyse.by_hand import ids, layers_of, model_of, same_model_of

LENGTH = 21
TOKENS = ids(2, LENGTH)
CAUSAL = pj.make('nope()', causal=True)


def streamed(q, k, *, tau=0, block=4):
    """One layer of given, already rotated queries and keys [B, L, heads, H]."""
    tok = pj.Tokens.of(length=q.shape[1])
    sums = distance_sums(CAUSAL, q, k, tok, tok, q.shape[-1] // 2, 'half', tau, block)
    moments, weighed, reached, queries = jax.tree.map(lambda a: np.asarray(a)[None], sums)
    return TokenDistance(Moments(*moments), weighed, reached, int(queries[0]))


def whole(c, s, far, seen, distance):
    """corr, alloc and dist of one head from matrices, [F, B, T, S] and [B, T, S], in float64."""
    p = np.exp(np.where(seen, s, -np.inf) - np.where(seen, s, -np.inf).max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    corr = [np.corrcoef(plane[far], s[far])[0, 1] for plane in c]
    weighed = (p * np.abs(c)).sum((1, 2, 3))
    return corr, weighed / weighed.sum(), (p * distance).sum() / (s.shape[0] * s.shape[1])


def by_hand(around, name):
    """A result of the case in the sheet: that in blocks of 1, 2 or 3 queries which is farthest."""
    q = jnp.asarray([1.0, 1.0, 0.0, 0.0]) * jnp.ones((1, 3, 1, 1))
    k = 2 * jnp.array([around['c_0'], around['c_1'], 3 * [0.0], 3 * [0.0]]).T[None, :, None]
    found = [getattr(streamed(q, k, block=block), name)[0, 0] for block in (1, 2, 3)]
    return max(found, key=lambda one: np.abs(one - np.array(around[name])).max())


test_golden = golden_suite(
    'token_distance',
    {
        'corr': lambda around: by_hand(around, 'corr'),
        'alloc': lambda around: by_hand(around, 'alloc'),
        'dist': lambda around: by_hand(around, 'dist'),
    },
    atol=1e-6,
)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'encoding',
    [
        'rope()',
        'rope(layout="interleaved", partial=0.5) | window(size=15)',
        'rope(freqs=dynamic_ntk())',
    ],
)
def test_every_layer_and_head_equals_the_whole_matrix(encoding):
    model = same_model_of(encoding=encoding)
    found, tok = token_distance(model, TOKENS, block=4), pj.Tokens.of(length=LENGTH)
    count = found.corr.shape[-1]
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    seen = np.broadcast_to(
        (distance >= 0) & ((distance < 15) | ('window' not in encoding)), (2, LENGTH, LENGTH)
    )
    far = seen & (distance >= LENGTH // 4)
    for layer, (chain, q, k, v) in enumerate(layers_of(model, TOKENS)):
        q, k = (np.asarray(a, np.float64) for a in chain.project(q, k, v, tok, tok)[:2])
        for head in range(4):
            product = np.einsum('bth,bsh->hbts', q[:, :, head], k[:, :, head // 2]) / np.sqrt(8)
            first = np.s_[: 2 * count : 2] if 'layout' in encoding else np.s_[:count]
            second = np.s_[1 : 2 * count : 2] if 'layout' in encoding else np.s_[count : 2 * count]
            c = product[first] + product[second]
            corr, alloc, dist = whole(c, product.sum(0), far, seen, distance)
            np.testing.assert_allclose(found.corr[layer, head], corr, atol=2e-5)
            np.testing.assert_allclose(found.alloc[layer, head], alloc, atol=2e-6)
            assert found.dist[layer, head] == pytest.approx(dist, abs=1e-5)
    np.testing.assert_allclose(found.score, found.corr[..., count // 2 :].mean(-1))
    np.testing.assert_allclose(found.alloc.sum(-1), 1.0, rtol=5e-7)


def draw(heads, kv_heads, length=24, width=16):
    shape = lambda count: (1, length, count, width)
    pos = jnp.arange(length)[None]
    return [
        rope(jax.random.normal(jax.random.key(i), shape(n)), pos)
        for i, n in enumerate((heads, kv_heads))
    ]


@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_planes_sum_to_the_logits_and_obey_cauchy_schwarz(layout):
    q, k = (jnp.swapaxes(a, 1, 2) for a in draw(4, 2))
    c, s = plane_logits(q, k, 8, layout), scaled_dot_product(q, k)
    np.testing.assert_allclose(c.sum(0), s, atol=2e-6)
    shape, axis = ((2, 8), -2) if layout == 'half' else ((8, 2), -1)
    in_planes = lambda a: np.reshape(a, (*a.shape[:-1], *shape))
    size = lambda a: np.moveaxis(np.linalg.norm(in_planes(a), axis=axis), -1, 0)
    bound = size(q)[..., :, None] * np.repeat(size(k), 2, axis=2)[..., None, :] / 4
    assert (np.abs(c) <= bound * (1 + 1e-5)).all()


def test_one_plane_alone_is_the_logit_and_scale_does_not_matter():
    q, k = draw(2, 1)
    only = q * np.isin(np.arange(16), [3, 11])
    corr = streamed(only, k, tau=6).corr[0, 0]
    assert corr[3] == pytest.approx(1.0, abs=1e-6) and (np.delete(corr, 3) == 0).all()
    scaled, plain = (streamed(scale * q, k, tau=6).corr for scale in (8.0, 1.0))
    np.testing.assert_allclose(scaled, plain, atol=1e-6)


def test_a_constant_plane_has_no_correlation_and_a_large_mean_does_no_harm():
    q, k = draw(1, 1)
    constant = jnp.full((1, 24, 1, 16), 0.3)
    assert (streamed(constant, constant).corr == 0).all() and (streamed(0 * q, k).alloc == 0).all()
    feature = np.asarray(jax.random.normal(jax.random.key(5), (24,)), np.float64)
    columns = [2 * (300.0 + feature), 2 * feature[::-1], 0 * feature, 0 * feature]
    lifted = jnp.asarray(np.stack(columns, -1), jnp.float32)[None, :, None]
    one = jnp.ones((1, 24, 1, 4)) * jnp.asarray([1.0, 1.0, 0.0, 0.0])
    seen = np.tril(np.ones((24, 24), bool))
    c = np.broadcast_to(np.asarray(lifted[0, :, 0, 0], np.float64) / 2, (24, 24))[seen]
    other = np.broadcast_to(np.asarray(lifted[0, :, 0, 1], np.float64) / 2, (24, 24))[seen]
    expected = np.corrcoef(c, c + other)[0, 1]
    assert streamed(one, lifted).corr[0, 0, 0] == pytest.approx(expected, abs=5e-5)


def test_more_weight_on_low_frequencies_is_a_higher_score():
    q, k = draw(6, 1, length=48)
    share = np.linspace(0.05, 0.95, 6)
    low = np.arange(16) % 8 >= 4
    found = streamed(q * np.where(low, share[:, None], 1 - share[:, None]), k, tau=12)
    assert spearman(found.score, share) == 1.0
    assert spearman(found.alloc[0, :, 4:].sum(-1), share) == 1.0
    assert positional_heads(found.score, 0.05) == [(0, 5)]
    assert positional_heads(found.score, 0.34) == [(0, 5), (0, 4), (0, 3)]


def test_spearman_with_ties():
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: cov 4.5, variances 4.5 and 5
    assert spearman(np.array([0, 1, 1, 2]), np.array([5, 6, 7, 8])) == pytest.approx(np.sqrt(0.9))
    assert spearman(np.array([1, 2, 3]), np.array([3, 2, 1])) == -1.0
    assert spearman(np.ones(3), np.arange(3)) == 0.0


@pytest.mark.full
def test_heads_that_are_removed_and_no_others():
    model = model_of(layers=4, pattern=('rope()', 'rope(base=500.0)'))
    before = np.asarray(model(TOKENS))
    less = without_heads(model, [(3, 1)])
    for layer, ((_, old), (_, new)) in enumerate(zip(model.layers(), less.layers())):
        for head in range(4):
            kept = np.array_equal(old.attention.w_out[...][head], new.attention.w_out[...][head])
            assert kept == ((layer, head) != (3, 1))
    assert np.abs(less(TOKENS) - before).max() > 1e-3
    np.testing.assert_array_equal(model(TOKENS), before)
    np.testing.assert_array_equal(without_heads(model, [])(TOKENS), before)
