"""Token distance: streamed sums against the whole matrix in float64, and a case worked out by
hand.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.lab.analyse.token_distance import (
    Moments,
    TokenDistance,
    plane_logits,
    positional_heads,
    spearman,
    stream,
    token_distance,
    without_heads,
)
from posenc_jax.methods.rope import rope
from tests.golden_files import golden
from tests.small_models import small_model

GOLDEN = golden('token_distance')['values']
BASE = dict(vocab_size=13, train_len=16, layers=2, width=32, heads=4, kv_heads=2, encoding='rope()')
LENGTH = 21
TOKENS = jax.random.randint(jax.random.key(1), (2, LENGTH), 0, 13)
CAUSAL = pj.make('nope()', causal=True)


model_of = functools.partial(small_model, **BASE)


def streamed(q, k, *, tau=0, block=4, layout='half', valid=None):
    """One layer of given, already rotated queries and keys [B, L, heads, H]."""
    tok = pj.Tokens.of(length=q.shape[1]) if valid is None else pj.Tokens.of(valid=valid)
    sums = stream(CAUSAL, q, k, tok, tok, q.shape[-1] // 2, layout, tau, block)
    moments, weighed, reached, queries = jax.tree.map(lambda a: np.asarray(a)[None], sums)
    return TokenDistance(Moments(*moments), weighed, reached, int(queries[0]))


def whole(c, s, far, seen, distance):
    """corr, alloc and dist of one head from matrices, [F, B, T, S] and [B, T, S], in float64."""
    p = np.exp(np.where(seen, s, -np.inf) - np.where(seen, s, -np.inf).max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    corr = [np.corrcoef(plane[far], s[far])[0, 1] for plane in c]
    weighed = (p * np.abs(c)).sum((1, 2, 3))
    return corr, weighed / weighed.sum(), (p * distance).sum() / (s.shape[0] * s.shape[1])


def test_golden_case_by_hand():
    q = jnp.asarray([1.0, 1.0, 0.0, 0.0]) * jnp.ones((1, 3, 1, 1))
    k = (
        2
        * jnp.stack(
            [jnp.asarray(GOLDEN['c_0']), jnp.asarray(GOLDEN['c_1']), jnp.zeros(3), jnp.zeros(3)], -1
        )[None, :, None]
    )
    for block in (1, 2, 3):
        found = streamed(q, k, block=block)
        np.testing.assert_allclose(found.corr[0, 0], GOLDEN['corr'], atol=1e-6)
        np.testing.assert_allclose(found.alloc[0, 0], GOLDEN['alloc'], atol=1e-6)
        assert found.dist[0, 0] == pytest.approx(GOLDEN['dist'], abs=1e-6)


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
    model = model_of(encoding=encoding)
    found, tok = token_distance(model, TOKENS, block=4), pj.Tokens.of(length=LENGTH)
    count = found.corr.shape[-1]
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    seen = np.broadcast_to(
        (distance >= 0) & ((distance < 15) | ('window' not in encoding)), (2, LENGTH, LENGTH)
    )
    far = seen & (distance >= LENGTH // 4)
    x = model.embed(TOKENS, model.place(tok))
    for layer, (layer_type, layer_block) in enumerate(model.layers()):
        chain = model.encoding(layer_type, layer_block)
        q, k, v = layer_block.attention.qkv(layer_block.attention_norm(x))
        q, k, *_ = (np.asarray(a, np.float64) for a in chain.project(q, k, v, tok, tok)[:3])
        for head in range(4):
            product = np.einsum('bth,bsh->hbts', q[:, :, head], k[:, :, head // 2]) / np.sqrt(8)
            planes = [
                (2 * t, 2 * t + 1) if 'layout' in encoding else (t, t + count) for t in range(count)
            ]
            c = np.stack([product[i] + product[j] for i, j in planes])
            corr, alloc, dist = whole(c, product.sum(0), far, seen, distance)
            np.testing.assert_allclose(found.corr[layer, head], corr, atol=2e-5)
            np.testing.assert_allclose(found.alloc[layer, head], alloc, atol=2e-6)
            assert found.dist[layer, head] == pytest.approx(dist, abs=1e-5)
        x = layer_block(x, tok, chain)
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
    size = lambda a: np.moveaxis(
        np.linalg.norm(np.reshape(a, (*a.shape[:-1], *shape)), axis=axis), -1, 0
    )
    bound = size(q)[..., :, None] * np.repeat(size(k), 2, axis=2)[..., None, :] / 4
    assert (np.abs(c) <= bound * (1 + 1e-5)).all()


def test_one_plane_alone_is_the_logit_and_scale_does_not_matter():
    q, k = draw(2, 1)
    only = q * np.isin(np.arange(16), [3, 11])
    corr = streamed(only, k, tau=6).corr[0, 0]
    assert corr[3] == pytest.approx(1.0, abs=1e-6) and (np.delete(corr, 3) == 0).all()
    np.testing.assert_allclose(
        streamed(8.0 * q, k, tau=6).corr, streamed(q, k, tau=6).corr, atol=1e-6
    )


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
    assert streamed(one, lifted).corr[0, 0, 0] == pytest.approx(
        np.corrcoef(c, c + other)[0, 1], abs=5e-5
    )


def test_more_weight_on_low_frequencies_is_a_higher_score():
    q, k = draw(6, 1, length=48)
    share = np.linspace(0.05, 0.95, 6)
    low = np.arange(16) % 8 >= 4
    found = streamed(q * np.where(low, share[:, None], 1 - share[:, None]), k, tau=12)
    assert spearman(found.score, share) == 1.0
    assert spearman(found.alloc[0, :, 4:].sum(-1), share) == 1.0
    assert positional_heads(found.score, 0.05) == [(0, 5)] and positional_heads(
        found.score, 0.34
    ) == [(0, 5), (0, 4), (0, 3)]


@pytest.mark.full
def test_batches_merge_and_padding_does_not_count():
    model = model_of()
    found = token_distance(model, TOKENS, tau=5)
    merged = token_distance(model, TOKENS[:1], tau=5).merge(
        token_distance(model, TOKENS[1:], tau=5)
    )
    padded = token_distance(
        model,
        jnp.pad(TOKENS, ((0, 0), (4, 0))),
        pj.Tokens.of(valid=np.arange(LENGTH + 4)[None] >= 4),
        tau=5,
        block=8,
    )
    for other in (merged, padded):
        assert other.queries == found.queries == 2 * LENGTH
        for name in ('corr', 'alloc', 'dist'):
            np.testing.assert_allclose(
                getattr(other, name), getattr(found, name), atol=2e-5, err_msg=name
            )


def test_spearman_with_ties():
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: cov 4.5, variances 4.5 and 5
    assert spearman(np.array([0, 1, 1, 2]), np.array([5, 6, 7, 8])) == pytest.approx(np.sqrt(0.9))
    assert (
        spearman(np.array([1, 2, 3]), np.array([3, 2, 1])) == -1.0
        and spearman(np.ones(3), np.arange(3)) == 0.0
    )


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


def test_errors():
    for spec, message in [
        ('alibi()', 'token_distance needs .* got alibi'),
        ('rope() | full()', 'later tokens'),
    ]:
        with pytest.raises(ValueError, match=message):
            token_distance(model_of(encoding=spec), TOKENS)
    with pytest.raises(ValueError, match='later tokens'):
        token_distance(model_of(kind='encoder'), TOKENS)
    for options, message in [
        (dict(tau=21), r'0 \.\. 20 for 21 tokens, got 21'),
        (dict(block=0), 'at least 1, got 0'),
    ]:
        with pytest.raises(ValueError, match=message):
            token_distance(model_of(), TOKENS, **options)
    with pytest.raises(ValueError, match=r'\(0, 1\], got 0'):
        positional_heads(np.ones((1, 2)), 0)
    with pytest.raises(ValueError, match=r'no head \(2, 0\)'):
        without_heads(model_of(), [(2, 0)])
