"""TUPE: a loop over pairs, the buckets of the released code, and the reset of the first token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.methods.tupe import tupe_bias, tupe_bucket
from tests.golden_files import golden_suite
from tests.methods.models import moved
from tests.methods.pairs import draw, qkv
from tests.refusals import refused

N, K, H, D, L = 4, 2, 8, 12, 7


def make(arguments='', **sizes):
    sizes = dict(heads=N, head_dim=H, model_dim=D) | sizes
    return moved(pj.make(f'tupe(max_len=9, {arguments})', **sizes), 0.5)


def logits(encoding, q, k, tok=None):
    """Of all pairs [B, N, T, S], from the doors."""
    tok = encoding.place(pj.Tokens.of(length=q.shape[1]) if tok is None else tok)
    q, k, _, tq, tk = encoding.project(jnp.asarray(q), jnp.asarray(k), None, tok, tok)
    return pair_logits(encoding, q.swapaxes(1, 2), k.swapaxes(1, 2), tq, tk)[0]


def bias(encoding):
    """B of one text, [N, T, S]."""
    zero = jnp.zeros((1, L, N, H))
    return logits(encoding, zero, zero[:, :, :K])[0]


def bucket(case):
    offset = jnp.array(case['key_minus_query'])[None]
    return tupe_bucket(jnp.ones((1, 1), int), offset + 1)[0, 0]


def reset_buckets(case):
    pos = jnp.arange(4)[None]
    return tupe_bucket(pos, pos, pos, pos, buckets=case['buckets'])[0]


def by_hand(case):
    part = pj.make('tupe(max_len=3)', heads=1, head_dim=2, model_dim=2)
    for name in ('table', 'norm_scale', 'norm_bias', 'w_q', 'c_q', 'w_k', 'c_k'):
        param = getattr(part, name)
        param[...] = jnp.array(case[name], jnp.float32).reshape(param.shape)
    q, k = (jnp.array(case[name], jnp.float32)[None, :, None] for name in ('q', 'k'))
    return logits(part, q, k)[0, 0]


test_golden = golden_suite('tupe') | {
    'buckets.bucket': bucket,
    'reset.bucket': reset_buckets,
    'by_hand.logits': (by_hand, {'atol': 1e-6}),
}


def loop(encoding, q, k, pos, relative, reset):
    """The definition in float64: column 0, of the first token, is set first and then row 0."""
    exact = lambda a: np.asarray(a, np.float64)
    table = exact(encoding.table[...])
    table = table - table.mean(1, keepdims=True)
    table = table / np.sqrt((table**2).mean(1, keepdims=True) + 1e-5)
    table = table * exact(encoding.norm_scale[...]) + exact(encoding.norm_bias[...])
    out = np.zeros((len(q), N, len(pos), len(pos)))
    for n in range(N):
        a = table @ exact(encoding.w_q[...])[:, n] + exact(encoding.c_q[...])[n]
        b = table @ exact(encoding.w_k[...])[:, n]
        if reset:
            b = b + exact(encoding.c_k[...])[n]
        added = np.array([[a[i + 1] @ b[j + 1] for j in pos] for i in pos])
        if reset:
            added[:, 0] = a[1] @ b[1]
            added[0] = a[0] @ b[0]
        out[:, n] = added / np.sqrt(2 * H)
        if relative:
            rows = exact(encoding.relative[...])[:, n]
            for t, s in np.ndindex(out.shape[2:]):
                offset = pos[s] - pos[t]  # all of them are below 8, which have buckets of their own
                row = abs(offset) + 16 * (offset > 0)
                if reset and s == 0:
                    row = 32
                if reset and t == 0:
                    row = 16
                out[:, n, t, s] += rows[row]
    content = np.einsum('btnh,bsnh->bnts', exact(q), exact(np.repeat(k, N // K, axis=2)))
    return out + content / np.sqrt(2 * H)


@pytest.mark.parametrize('relative', [False, True])
@pytest.mark.parametrize('reset', [False, True])
def test_equals_a_loop_over_pairs(relative, reset):
    q, k, _ = qkv(L, N, K)
    encoding, pos = make(f'{relative=}, {reset=}'), np.array([0, 1, 2, 3, 0, 1, 7])
    found = logits(encoding, q, k, pj.Tokens.of(positions=pos[None]))
    np.testing.assert_allclose(found, loop(encoding, q, k, pos, relative, reset), atol=2e-5)


def test_the_first_token_is_untied():
    for spec in ('', 'relative=True'):
        b = bias(make(spec))
        assert np.ptp(b[:, 1:, 0], axis=1).max() < 1e-5 and np.ptp(b[:, 0], axis=1).max() < 1e-5
        np.testing.assert_allclose(b[:, 0, 0], b[:, 0, 1], atol=1e-6)  # the value of its row
        assert np.abs(b[:, 1, 0] - b[:, 0, 0]).min() > 1e-3


@pytest.mark.parametrize('relative', [False, True])
def test_the_first_token_is_untied_wherever_it_is_placed(relative):
    sizes = dict(heads=N, head_dim=H, model_dim=D, train_len=L)
    chain = pj.make(f'shape(offsets=8) | tupe(max_len=14, {relative=})', **sizes)
    tok = chain.place(pj.Tokens.of(length=L), key=jax.random.key(0))
    assert tok.pos[0, 0] > 0
    part = moved(chain.parts[1], 0.5)
    zero = jnp.zeros((1, L, N, H))
    found = logits(part, zero, zero[:, :, :K], tok)
    expected = loop(part, zero, zero[:, :, :K], np.asarray(tok.pos[0]), relative, True)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    packed = part.place(pj.Tokens.of(segment=[[3] * 4 + [5] * 3]))
    b = np.asarray(logits(part, zero, zero[:, :, :K], packed)[0])
    assert np.ptp(b[:, 5:, 4], axis=1).max() < 1e-5 and np.ptp(b[:, 4, 4:], axis=1).max() < 1e-5


def test_the_order_of_the_resets_changes_one_pair():
    of_q, of_k = (jnp.asarray(draw(seed, 1, N, L, H)) for seed in (0, 1))
    row, column = jnp.full((1, N, 1), 5.0), jnp.full((1, N, 1), 7.0)
    pos = jnp.arange(L)[None]
    ours = tupe_bias(of_q, of_k, pos, pos, row, column)
    # Of the transposed pairs, the same function sets the row before the column.
    swapped = tupe_bias(of_k, of_q, pos, pos, column, row).swapaxes(2, 3)
    differ = np.abs(np.asarray(ours - swapped))[0] > 1e-4
    assert differ.sum(axis=(1, 2)).tolist() == [1] * N and differ[:, 0, 0].all()


def test_an_empty_table_leaves_a_temperature_of_two():
    q, k, _ = qkv(L, N, K)
    encoding = pj.make('tupe(std=0.0, relative=True)', heads=N, head_dim=H, model_dim=D)
    plain = pj.make('nope()')
    np.testing.assert_allclose(
        logits(encoding, q, k), logits(plain, q, k) / np.sqrt(2), rtol=1e-6, atol=1e-6
    )


def test_a_table_of_zeros_leaves_the_product_of_the_biases():
    part = make()
    part.table[...], part.norm_bias[...] = 0 * part.table[...], 0 * part.norm_bias[...]
    product = (np.asarray(part.c_q[...]) * np.asarray(part.c_k[...])).sum(-1) / (2 * H) ** 0.5
    assert np.abs(product).min() > 1e-3
    np.testing.assert_allclose(
        bias(part), np.broadcast_to(product[:, None, None], (N, L, L)), atol=1e-6
    )


def test_both_rows_of_the_first_token_are_trained():
    encoding = make()
    slope = jax.grad(lambda e: (bias(e) * draw(3, N, L, L)).sum())(encoding).table[...]
    used = np.abs(np.asarray(slope)).max(1) > 1e-4
    assert used.tolist() == [True] * (L + 1) + [False] * (10 - L - 1)


def at(positions):
    tok = pj.Tokens.of(positions=positions)
    return lambda: make().place(tok)


test_wrong_values = refused() | {
    'buckets=16, max_distance=128 are arguments of the relative bias': lambda: make('buckets=16'),
    'even number of buckets, got 7; the nearest is 8': lambda: make('relative=True, buckets=7'),
    r'position 9 is not in 0 \.\. 8; use a larger table or shorter inputs': at([[0, 9]]),
    'position -1 is not in': at([[0, -1]]),
    'tupe needs integer positions, got float32': at([[0.5, 1.0]]),
    r'needs one position per token \[B, L\], got \(1, 1, 2\)': at([[[0, 1]]]),
    'parameters of 4 heads, the queries have 2': lambda: logits(make(), *qkv(3, 2, 2)[:2]),
}


def test_traced_positions_that_do_not_exist_are_nan():
    encoding, zero = make('reset=False'), jnp.zeros((1, 2, N, H))

    def run(pos):
        tok = pj.Tokens.of(positions=pos)
        *_, tq, tk = encoding.project(zero, zero, zero, tok, tok)
        return pair_logits(encoding, zero.swapaxes(1, 2), zero.swapaxes(1, 2), tq, tk)[0]

    found = jax.jit(run)(jnp.array([[-1, 8]]))[0, 0]
    assert np.isnan(found).tolist() == [[True, True], [True, False]]
