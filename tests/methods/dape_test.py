"""DAPE: numbers by hand, loops over pairs and channels, and the limits of the network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.lab.analyse.decay_kernel import decay_kernel
from posenc_jax.methods.dape import dape_adjustment
from posenc_jax.protocol.capabilities import first_carry
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden_suite
from tests.methods.models import moved
from tests.methods.pairs import attend, draw, qkv
from tests.refusals import refused

N, W, L = 3, 4, 7
METHODS = 'dape', 'dape_v2'
CAUSAL = np.tril(np.ones((L, L), bool))


def make(spec, causal=None, seed=0):
    encoding = pj.make(spec, heads=N, head_dim=8, causal=causal)
    return moved(encoding, 0.5, seed)


def adjusted(case, seen):
    at = lambda name: jnp.array(case[name], jnp.float32)
    taps = lambda name: at(name).reshape(-1, 1, 1)
    s = jnp.broadcast_to(at('scores'), (1, 1, *seen.shape))
    bias, of_bias = None, None
    if 'bias' in case:
        bias, of_bias = jnp.broadcast_to(at('bias'), s.shape), taps('of_bias')
    weights = taps('of_scores'), of_bias, at('offset')[None], taps('out')
    found = dape_adjustment(s, bias, jnp.asarray(seen)[None, None], *weights)
    return jnp.where(seen, found, -jnp.inf)[0, 0]


test_golden = golden_suite('dape', atol=1e-7) | {
    'pair.adjustment': lambda case: adjusted(case, np.ones((1, 3), bool))[0]
}
test_golden_v2 = golden_suite('dape_v2', rtol=1e-6) | {
    'row.adjustment': lambda case: adjusted(case, CAUSAL[:3, :3])
}


def leaky(x):
    return np.where(x > 0, x, 0.01 * x)


def loop(part, s, b, seen):
    """The definition in float64 [N, T, S]: every query has a row of channels, which goes on behind
    the keys that it sees and begins at the first of them.
    """
    exact = lambda a: np.asarray(a, np.float64)
    kernels = [exact(a[...]) for a in (part.of_scores, part.of_bias) if a is not None]
    channels = [exact(a) for a in (s, b) if a is not None]
    offset, out, half = exact(part.offset[...]), exact(part.out[...]), part.taps // 2
    found = sum(channels)
    for t, j in np.ndindex(seen.shape):
        first = np.flatnonzero(seen[t])[0]
        for tap in range(part.taps):
            place = j + tap - half
            if place < first:
                continue
            hidden = offset.copy()
            for inner in range(part.taps):
                key = place + inner - half
                if 0 <= key < seen.shape[1] and seen[t, key]:
                    hidden += sum(a[:, t, key] @ w[inner] for a, w in zip(channels, kernels))
            found[:, t, j] += leaky(hidden) @ out[tap]
    return found


def logits_of(part, s, seen=CAUSAL):
    tok = pj.Tokens.of(length=s.shape[-1])
    found, _ = part.logits(s[None], None, None, tok, tok, jnp.asarray(seen)[None, None], ())
    return np.asarray(found[0])


def static(spec, s):
    """S + b of the encoding inside, and b."""
    pos = jnp.arange(s.shape[-1])[None]
    return np.asarray(make(spec).bias(pos, pos)[0])


@pytest.mark.full_where(condition=lambda method, bias: method == 'dape' and bias is None)
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('bias', ['alibi()', None])
def test_equals_a_loop_over_pairs_and_channels(method, bias):
    s = draw(1, N, L, L)
    part = make(f'{method}(encoding={bias}, width={W})')
    seen = CAUSAL.copy()
    seen[4:, :2] = False  # another document, or padding
    found = logits_of(part, s, seen)
    expected = loop(part, s, None if bias is None else static(bias, s), seen)
    np.testing.assert_allclose(found[:, seen], expected[:, seen], atol=2e-5)


@pytest.mark.full_where(condition=lambda method, bias: method == 'dape' and bias != 'kerple()')
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(
    'bias', ['kerple()', 'kerple(kernel="weight")', 'fire(width=4)', 'alibi() | t5_rpe()']
)
def test_without_an_output_it_is_the_static_bias(method, bias):
    part, s = make(f'{method}(encoding={bias}, width={W})'), draw(1, N, L, L)
    part.out[...] = 0 * part.out[...]
    tok = pj.Tokens.of(length=L)
    inside = part.encoding
    carry = first_carry(inside, jnp.zeros((1, N, L, 8)), tok)
    expected, _ = inside.logits(s[None], None, None, tok, tok, CAUSAL, carry)
    np.testing.assert_allclose(logits_of(part, s), expected[0], atol=1e-6)


def test_the_middle_tap_alone_is_the_first_version():
    one, three, s = make('dape(width=4)'), make('dape_v2(width=4)'), draw(1, N, L, L)
    for name in ('of_scores', 'out'):
        middle = getattr(one, name)[...]
        getattr(three, name)[...] = jnp.zeros((3, *middle.shape[1:])).at[1].set(middle[0])
    three.offset[...] = one.offset[...]
    found, expected = logits_of(three, s), logits_of(one, s)
    np.testing.assert_allclose(found[:, CAUSAL], expected[:, CAUSAL], atol=1e-6)


@pytest.mark.parametrize('method', METHODS)
def test_heads_are_permuted_together_with_their_channels(method):
    part, s = make(f'{method}(encoding=kerple(), width={W})'), draw(1, N, L, L)
    order = np.array([2, 0, 1])
    expected = logits_of(part, s)[order]
    for name, axis in (('of_scores', 1), ('of_bias', 1), ('out', 2)):
        param = getattr(part, name)
        param[...] = jnp.take(param[...], order, axis)
    for param in part.encoding.raw.values():
        param[...] = param[...][order]
    np.testing.assert_allclose(logits_of(part, s[order]), expected, atol=1e-5)


@pytest.mark.parametrize('method, reach', [('dape', 0), ('dape_v2', 2)])
def test_a_key_changes_the_logits_of_its_neighbours_that_are_seen(method, reach):
    part, s, j = make(f'{method}(width={W})'), draw(1, N, L, L), 3
    other = s.copy()
    other[:, :, j] += 1.0
    changed = (np.abs(logits_of(part, other) - logits_of(part, s)) > 1e-6).all(0)
    apart = np.abs(np.arange(L) - j)[None]
    expected = (apart <= reach) & (np.arange(L)[:, None] >= j)  # no row in front of the key
    np.testing.assert_array_equal(changed & CAUSAL, expected & CAUSAL)


@functools.cache
def inputs():
    return qkv(12, N, N)


@pytest.mark.parametrize('causal', [True, False])
def test_a_text_alone_and_padded_are_the_same(causal):
    """Also for the last query, whose hidden values behind it are those of a longer text."""
    encoding = make('dape_v2(encoding=alibi(), width=4)', causal)
    arrays = inputs()
    whole = pj.Tokens.of(valid=[[False] * 2 + [True] * 7 + [False] * 3])
    found = attend(encoding, *arrays, whole)[:, 2:9]
    alone = attend(encoding, *(a[:, 2:9] for a in arrays))
    np.testing.assert_allclose(found, alone, atol=2e-5)


def test_the_first_query_reads_the_hidden_value_behind_it():
    part = make('dape_v2(width=4)')
    s, weights = draw(1, N, L, L), np.asarray(part.out[...])
    found = logits_of(part, s)[:, 0, 0] - s[:, 0, 0]
    kernel, offset = np.asarray(part.of_scores[...]), np.asarray(part.offset[...])
    own, behind = (leaky(s[:, 0, 0] @ kernel[tap] + offset) for tap in (1, 0))
    np.testing.assert_allclose(found, own @ weights[1] + behind @ weights[2], atol=1e-5)
    assert np.abs(behind @ weights[2]).min() > 1e-3


@pytest.mark.parametrize('method', METHODS)
def test_a_refused_key_stays_refused(method):
    """A logit of -inf reads as 0 in the network, and all other logits are finite with gradients."""
    part, s = make(f'{method}(width={W})'), draw(1, N, L, L)
    s[:, 3:, 1] = -np.inf
    found = logits_of(part, s)
    np.testing.assert_array_equal(np.isinf(found), np.isinf(s))

    def total(part):
        tok = pj.Tokens.of(length=L)
        out, _ = part.logits(s[None], None, None, tok, tok, jnp.asarray(CAUSAL)[None, None], ())
        return jnp.where(jnp.isfinite(out), out, 0).sum()

    assert all(np.isfinite(a).all() for a in jax.tree.leaves(jax.grad(total)(part)))


def test_rotated_products_without_a_bias():
    encoding = make('rope() | dape(width=4)')
    tok, (q, k, _) = pj.Tokens.of(length=12), map(jnp.asarray, inputs())
    turned = encoding.parts[0].project(q, k, k, tok, tok)
    heads_first = lambda a: jnp.swapaxes(a, 1, 2)
    found = pair_logits(encoding, *map(heads_first, turned[:2]), tok, tok)[0]
    s = jnp.einsum('btnh,bsnh->bnts', *turned[:2]) / 8**0.5
    expected = loop(encoding.parts[1], s[0], None, np.ones((12, 12), bool))
    np.testing.assert_allclose(found[0], expected, atol=2e-5)


def test_initial_ranges_are_those_of_linear_layers():
    for method, taps in zip(METHODS, (1, 3)):
        part = pj.make(f'{method}(encoding=alibi(), width=400)', heads=8)
        for name, inputs in (('of_scores', 16), ('of_bias', 16), ('offset', 16), ('out', 400)):
            values, bound = np.abs(getattr(part, name)[...]), (taps * inputs) ** -0.5
            assert 0.97 * bound < values.max() <= bound and values.mean() < 0.6 * bound


def test_what_the_bias_needs_is_needed():
    assert make('dape(encoding=kerple())').card.promises.relative
    assert not make('dape(encoding=fire())').card.promises.relative
    with pytest.raises(SpecError, match='dape is defined for causal attention only'):
        make('dape(encoding=fire())', causal=False)


test_wrong_values = refused() | {
    'dape adjusts a bias of positions such as .*, got rope; write rope before it': (
        lambda: make('dape(encoding=rope())')
    ),
    'dape_v2 adjusts a bias of positions .* got soft_cap': (
        lambda: make('dape_v2(encoding=alibi() | soft_cap())')
    ),
    'dape_v2 has parameters of 3 heads, the queries have 2': (
        lambda: logits_of(make('dape_v2(width=4)'), draw(1, 2, L, L))
    ),
    'needs a bias that depends on positions alone; dape forms logits of its own': (
        lambda: decay_kernel(make('dape(encoding=alibi())'), N)
    ),
    'dape width must be at least 1, got 0': lambda: make('dape(width=0)'),
}
