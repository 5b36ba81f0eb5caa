"""LM-Infinite: what is visible, the ceiling on distances, dense definition against tiles, decoding, documents, padding."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.core.registry import SpecError
from posenc_jax.rotation.rope import rope

GOLDEN = json.loads((Path(__file__).parents[1] / 'golden' / 'lm_infinite.json').read_text())['values']
WIDTH, LENGTH, LOCAL, GLOBAL = 8, GOLDEN['length'], GOLDEN['n_local'], GOLDEN['n_global']


def encoding(part='rope()', n_local=LOCAL, n_global=GLOBAL):
    spec = f'lm_infinite(encoding={part}, n_global={n_global}, n_local={n_local})'
    return pj.make(spec, head_dim=WIDTH, heads=2, train_len=64, causal=True)


def qkv(length, kv_heads=1):
    draw = lambda seed, heads: jax.random.normal(jax.random.key(seed), (1, length, heads, WIDTH))
    return draw(0, 2), draw(1, kv_heads), draw(2, kv_heads)


def run(part, tok, *arrays, **options):
    return jax.jit(lambda tok, *arrays: pj.attend(part, *part.project(*arrays, tok, tok), **options))(tok, *arrays)


@jax.jit
def defined(q, k, v, slopes=None):
    """Dense softmax over the Lambda-shaped mask with D = min(i - j, R): rotated pair by pair, or as a linear bias."""
    length = q.shape[1]
    gap = np.subtract.outer(np.arange(length), np.arange(length))
    distance = np.minimum(gap, LOCAL)
    k, v = (jnp.repeat(a, 2 // a.shape[2], axis=2) for a in (k, v))
    if slopes is None:
        turned = rope(jnp.repeat(q, length, axis=1), jnp.asarray(distance.reshape(1, -1)))
        s = jnp.einsum('btsnh,bsnh->bnts', turned.reshape(1, length, length, 2, WIDTH), k) / WIDTH**0.5
    else:
        s = jnp.einsum('btnh,bsnh->bnts', q, k) / WIDTH**0.5 - slopes[:, None, None] * distance
    s = jnp.where((gap >= 0) & ((gap < LOCAL) | (np.arange(length) < GLOBAL)), s, -jnp.inf)
    return jnp.einsum('bnts,bsnh->btnh', jax.nn.softmax(s), v)


def test_golden_visible_counts():
    tok = pj.Tokens.of(length=LENGTH)
    assert encoding().mask(tok, tok)[0, 0].sum(-1).tolist() == GOLDEN['visible']


@pytest.mark.parametrize('block', [None, (1, 1), (4, 4), (5, 3), (16, 7)], ids=str)
@pytest.mark.parametrize('part', ['rope()', 'alibi()'])
def test_tiles_equal_the_defining_dense_form(part, block):
    arrays = qkv(19)
    out = run(encoding(part), pj.Tokens.of(length=19), *arrays, block=block)
    slopes = pj.make('alibi()', heads=2).slopes[...] if part == 'alibi()' else None
    np.testing.assert_allclose(out, defined(*arrays, slopes), atol=2e-6)


def test_gradients_of_tiles_equal_those_of_the_definition():
    arrays, tok = qkv(13), pj.Tokens.of(length=13)
    weights = jax.random.normal(jax.random.key(9), (1, 13, 2, WIDTH))
    expected = jax.jit(jax.grad(lambda *a: (defined(*a) * weights).sum(), (0, 1, 2)))(*arrays)
    for block in (None, (5, 3)):
        ours = jax.jit(jax.grad(lambda *a: (run(encoding(), tok, *a, block=block) * weights).sum(), (0, 1, 2)))(*arrays)
        for a, b in zip(ours, expected):
            np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize(
    'part',
    [
        'rope()',
        'alibi()',
        'rope(freqs=yarn(factor=4.0))',
        'rope(partial=0.5)',
        'kerple(kernel="bias_wht")',  # these two change the logit itself before they add to it
        't5_rpe(scaled=False)',
    ],
)
def test_within_the_window_it_is_the_encoding_itself(part):
    arrays, tok = qkv(10), pj.Tokens.of(length=10)
    plain = pj.make(part, head_dim=WIDTH, heads=2, train_len=64, causal=True)
    np.testing.assert_allclose(run(encoding(part, n_local=10), tok, *arrays), run(plain, tok, *arrays), atol=1e-6)


@pytest.mark.parametrize('part', ['alibi()', 'kerple(kernel="bias_wht")', 't5_rpe(scaled=False)'])
def test_a_far_key_has_the_logit_of_the_ceiling(part):
    q, k, v = qkv(12)
    far = encoding(part, n_local=3, n_global=1)
    near = pj.make(part, head_dim=WIDTH, heads=2, train_len=64)
    score = lambda e, i, j: e.score(jnp.ones((1, 2, 1, 1)), pj.Tokens.of(positions=[[i]]), pj.Tokens.of(positions=[[j]]), True, ())[0]
    for i, j in ((3, 0), (4, 0), (11, 0)):
        np.testing.assert_allclose(score(far.parts[0] if hasattr(far, 'parts') else far, i, j), score(near, 3, 0), atol=1e-6)


def test_random_positions_change_distances_not_who_is_seen():
    plain = pj.make('lm_infinite(encoding=rope(), n_global=2, n_local=4)', head_dim=WIDTH, train_len=64)
    random = pj.make('randomized_pe(max_len=2048) | lm_infinite(encoding=rope(), n_global=2, n_local=4)', head_dim=WIDTH, train_len=64)
    tok = pj.Tokens.of(length=12)
    placed = random.place(tok, key=jax.random.key(0))
    assert np.diff(placed.pos[0]).max() > 4
    np.testing.assert_array_equal(random.mask(placed, placed), plain.mask(tok, tok))


@pytest.mark.parametrize('part', ['rope(freqs=yarn(factor=4.0))', 'rope(partial=0.5)', 'rope(layout="interleaved")'])
def test_the_ceiling_holds_for_every_rotary_encoding(part):
    """The only key far away has the logit of a pair at distance R, temperature included."""
    q, k, v = qkv(12)
    far = run(encoding(part, n_local=2, n_global=1), pj.Tokens.of(length=12), q, k, v)[:, 11]
    order = np.array([0, 10, 11])
    near = pj.make(part, head_dim=WIDTH, train_len=64)
    tq, tk = pj.Tokens.of(positions=[[12]]), pj.Tokens.of(positions=[[10, 11, 12]])
    expected = pj.attend(near, *near.project(q[:, 11:], k[:, order], v[:, order], tq, tk))[:, 0]
    np.testing.assert_allclose(far, expected, atol=2e-6)


def test_a_row_depends_on_visible_keys_only():
    q, k, v = qkv(LENGTH)
    tok = pj.Tokens.of(length=LENGTH)
    gradient = jax.grad(lambda k, v: run(encoding(), tok, q, k, v)[:, 15].sum(), (0, 1))(k, v)
    for g in gradient:
        reached = np.abs(np.asarray(g)).sum((0, 2, 3)) > 0
        assert np.flatnonzero(reached).tolist() == [0, 1, 11, 12, 13, 14, 15]


@pytest.mark.parametrize('part', ['rope()', 'alibi()'])
def test_decoding_over_keys_cached_once(part):
    q, k, v = qkv(14)
    part, tok = encoding(part), pj.Tokens.of(length=14)
    whole = run(part, tok, q, k, v)
    _, cached, _, _, _ = part.project(q, k, v, tok, tok)
    for n in (0, 4, 5, 9, 13):
        new_q, _, _, tq, _ = part.project(*(a[:, n : n + 1] for a in (q, k, v)), tok.slice(n, 1), tok.slice(n, 1))
        held = pj.Tokens.of(valid=tok.index <= n)
        np.testing.assert_allclose(pj.attend(part, new_q, cached, v, tq, held)[:, 0], whole[:, n], atol=1e-6)


@pytest.mark.parametrize('part', ['rope()', 'alibi()'])
def test_left_padding_and_packing_keep_their_own_first_tokens(part):
    arrays, part = qkv(11), encoding(part)
    alone = run(part, pj.Tokens.of(length=11), *arrays)
    padded = [jnp.pad(a, ((0, 0), (9, 0), (0, 0), (0, 0)), constant_values=5.0) for a in arrays]
    out = run(part, pj.Tokens.of(valid=np.arange(20)[None] >= 9), *padded, block=(4, 4))
    np.testing.assert_allclose(out[:, 9:], alone, atol=1e-6)
    twice = [jnp.concatenate([a, a], 1) for a in arrays]
    packed = run(part, pj.Tokens.of(segment=np.repeat([[0, 1]], 11, axis=1)), *twice, block=(4, 4))
    np.testing.assert_allclose(packed, jnp.concatenate([alone, alone], 1), atol=1e-6)


def test_it_decides_causality_and_window_defaults_to_the_trained_length():
    part = pj.make('lm_infinite(encoding=rope())', head_dim=8, train_len=64)
    assert 'causality' in part.decides and (part.n_local, part.n_global) == (64, 10)


def test_bfloat16():
    arrays, tok = [a.astype(jnp.bfloat16) for a in qkv(12)], pj.Tokens.of(length=12)
    out = run(encoding(), tok, *arrays)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), defined(*(a.astype(jnp.float32) for a in arrays)), atol=0.04)


@pytest.mark.parametrize(
    'spec, message',
    [
        ('lm_infinite(encoding=nope())', 'relative bias such as alibi.*got nope'),
        ('lm_infinite(encoding=rope(freqs=dynamic_ntk()))', 'do not depend on the current length'),
        ('lm_infinite(encoding=rope(), n_local=0)', 'n_local=0'),
        ('lm_infinite(encoding=rope(), n_global=-1)', 'n_global=-1'),
        ('lm_infinite()', "needs 'encoding'"),
    ],
)
def test_errors(spec, message):
    with pytest.raises(SpecError, match=message):
        pj.make(spec, head_dim=8, heads=2, train_len=64)
