"""PoPE: the paper's logits by hand, a loop over pairs, both forms of the cache, and the clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.pope import pope_delta, pope_frequencies
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden_suite
from tests.methods.pair_logits import logits
from tests.methods.pairs import draw
from tests.refusals import refused

N, K, H, L = 4, 2, 8, 12


def build(options='', *, moved=True, **context):
    sizes = dict(kv_heads=K, head_dim=H) | context
    part = pj.make(f'pope({options})', rngs=nnx.Rngs(0), **sizes)
    if moved:
        part.delta[...] = jnp.asarray(-5.0 * np.abs(draw(7, *part.delta.shape)))
    return part


def at(part, q, k, *far):
    """Logits of one query and keys that lie so far before it."""
    tok = pj.Tokens.of(positions=np.array([[100, *(100 - d for d in far)]]))
    rows = 1 + len(far)
    q, k = (jnp.broadcast_to(jnp.asarray(a), (1, rows, 1, len(a))) for a in (q, k))
    return logits(part, q, k, tok)[0, 0, 0]


def of_pair(pair, far, delta=0.0):
    part = build(moved=False, kv_heads=1, head_dim=4)
    part.delta[...] = jnp.full((1, 4), delta)
    return at(part, pair['q'], pair['k'], far)[1]


def of_zeros(case):
    zero = np.zeros(case['width'], np.float32)
    part = build(moved=False, kv_heads=1, head_dim=case['width'])
    return at(part, zero, zero, *case['far'])[1:]


test_golden = golden_suite('pope', atol=1e-6) | {
    'frequencies': (lambda: pope_frequencies(4, 1e4), {'rtol': 1e-12}),
    'pair.logit_here': lambda pair: of_pair(pair, 0),
    'pair.logit_far': lambda pair: of_pair(pair, pair['far']),
    'pair.logit_far_turned': lambda pair: of_pair(pair, pair['far'], pair['delta']),
    'zero.logit': of_zeros,
    'zero_wide.logit': of_zeros,
}


def by_pairs(part, q, k, pos, polar=H):
    """The definition, in float64."""
    soft = lambda a: np.log1p(np.exp(a.astype(np.float64)))
    theta = part.base ** (-np.arange(polar) / polar)
    delta = np.clip(np.asarray(part.delta[...], np.float64), -2 * np.pi, 0)
    out = np.zeros((len(q), N, L, L))
    for b, h, i, j in np.ndindex(out.shape):
        one, other = q[b, i, h], k[b, j, h // (N // K)]
        cos = np.cos((pos[j] - pos[i]) * theta + delta[h // (N // K)])
        out[b, h, i, j] = (soft(one[:polar]) * soft(other[:polar]) * cos).sum()
        out[b, h, i, j] += one[polar:].astype(np.float64) @ other[polar:]
    return out / H**0.5


def test_logits_equal_a_loop_over_pairs():
    q, k = draw(0, 1, L, N, H), draw(1, 1, L, K, H)
    pos = np.arange(L) * 2 + 3
    tok = pj.Tokens.of(positions=pos[None])
    for options, polar in (('', H), ('cache="raw"', H), ('partial=0.5', 4)):
        part = build(options)
        expected = by_pairs(part, q, k, pos, polar)
        np.testing.assert_allclose(logits(part, q, k, tok), expected, atol=2e-6)


def test_the_cache_holds_the_keys_as_projected_or_twice_as_many_numbers():
    q, k, tok = draw(0, 1, L, N, H), draw(1, 1, L, K, H), pj.Tokens.of(length=L)
    _, raw, _, _, tk = build('cache="raw"').project(q, k, k, tok, tok)
    np.testing.assert_array_equal(raw, k)
    assert not tk.feats
    _, polar, _, _, tk = build().project(q, k, k, tok, tok)
    assert polar.shape == tk.feats['pope'].shape == k.shape


@pytest.mark.parametrize('options', ['', 'cache="raw"'])
def test_what_changes_logits_changes_cosines_and_sines_wherever_it_stands(options):
    q, k = 3.0 * draw(0, 1, L, N, H), 3.0 * draw(1, 1, L, K, H)
    part = build(options)
    whole = np.asarray(logits(part, q, k), np.float64)
    changed = {
        'soft_cap(limit=2.0)': 2 * np.tanh(whole / 2),
        'ssmax()': whole * np.log(1 + np.arange(L))[:, None],
    }
    for spec, expected in changed.items():
        other = pj.make(spec, heads=N)
        for chained in (pj.chain(other, part), pj.chain(part, other)):
            np.testing.assert_allclose(logits(chained, q, k), expected, atol=1e-5)


SCALED = ('log_length(train_len=8)', 'irope()', 'nope_temperature(1.5, train_len=8, heads=4)')


@pytest.mark.parametrize('other', SCALED)
@pytest.mark.parametrize('options', ['', 'cache="raw"'])
def test_parts_behind_it_may_not_change_queries_and_keys(options, other):
    """They would find the cosines alone, or the magnitudes before softplus."""
    with pytest.raises(SpecError, match='pope does not read what .* makes of queries and keys'):
        pj.make(f'pope({options}) | {other}', kv_heads=K, head_dim=H, rngs=nnx.Rngs(0))


def test_without_delta_no_distance_beats_zero():
    q, k = draw(0, H), draw(1, H)
    found = np.asarray(at(build(moved=False, kv_heads=1), q, k, *range(64)))[1:]
    assert found[0] >= 0 and (found[1:] < found[0]).all()


def test_large_features_count_as_they_are():
    """softplus is the identity there; at distance 0 the logit is then that of plain attention."""
    q, k = 30.0 + draw(0, H), 30.0 + draw(1, H)
    found = at(build(moved=False, kv_heads=1), q, k, 0)[1]
    np.testing.assert_allclose(found, q @ k / H**0.5, rtol=3e-6)


def test_delta_of_minus_seven_acts_like_a_whole_turn():
    q, k = draw(0, H), draw(1, H)
    zero, turned = build(moved=False, kv_heads=1), build(moved=False, kv_heads=1)
    turned.delta[...] = jnp.full((1, H), -7.0)
    np.testing.assert_allclose(at(turned, q, k, 0, 5), at(zero, q, k, 0, 5), atol=1e-5)


def test_the_clip_passes_the_whole_gradient_at_its_ends_and_none_beyond():
    delta = jnp.array([-7.0, -2 * np.pi, -1.0, 0.0, 1.0])
    gradient = jax.grad(lambda d: pope_delta(d).sum())(delta)
    assert gradient.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    np.testing.assert_allclose(pope_delta(delta), np.clip(delta, -2 * np.pi, 0), rtol=1e-7)


def test_uniform_start_lies_within_the_bounds():
    delta = np.asarray(build('start="uniform"', moved=False).delta[...])
    assert (delta <= 0).all() and (delta >= -2 * np.pi).all() and np.ptp(delta) > 1


test_wrong_calls = refused() | {
    'no whole feature, expected at least one; the nearest partial is 0.125': lambda: build(
        'partial=0.1'
    ),
    'partial must be positive': lambda: build('partial=0.0'),
    'base of rotary frequencies, must be at least 1': lambda: build('base=0.5'),
    'pope and rope both rotate queries and keys': lambda: pj.make(
        'pope() | rope()', kv_heads=K, head_dim=H
    ),
    "start='one' is not one of 'zero', 'uniform'": lambda: build('start="one"'),
    'head_dim=8 and 1 key heads, got vectors of width 4 and 1 key heads': lambda: at(
        build(kv_heads=1), np.zeros(4), np.zeros(4), 1
    ),
    'and 2 key heads, got vectors of width 8 and 1 key heads': lambda: at(
        build('cache="raw"'), np.zeros(8), np.zeros(8), 1
    ),
    'one position per token, got 2 components': lambda: build().project(
        *[jnp.zeros((1, 3, K, H))] * 3, *[pj.Tokens.of(positions=np.zeros((1, 3, 2)))] * 2
    ),
}
