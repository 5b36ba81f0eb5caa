"""TRA: the sheet's row, an explicit reference, rows without a relevant key, and what irrelevant
keys cannot do.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.tra import tra_logits
from tests.golden_files import golden
from tests.methods.from_input import check_values_and_gradients, draw_inputs, run

GOLDEN = golden('tra')
B, N, K, H, D, L = 2, 4, 2, 8, 12, 21
TOLERANCE = 1e-5  # float32 logits of order ten


def build(options=''):
    return pj.make(f'tra({options})', causal=True, heads=N, kv_heads=K, head_dim=H, model_dim=D)


def inputs(length=L, seed=3):
    return draw_inputs((B, N, K, H, D), length, seed)


def reference(part, q, k, v, x):
    """The definition for one causal document a row; counts as sums of [T, S, S]."""
    unit = lambda a: a / jnp.sqrt(jnp.mean(a**2, -1, keepdims=True) + 1e-6)
    repeat = lambda a: jnp.repeat(a, N // K, axis=2)
    s = jnp.einsum('bihd,bjhd->bhij', unit(q), repeat(unit(k))) / H**0.5
    relevant = jnp.tril(s > part.threshold)
    after = jnp.arange(L)[:, None] <= jnp.arange(L)[None]
    count = (relevant[..., None, :] & after).sum(-1)
    delta = jnp.log(jax.nn.sigmoid(x @ part.kernel[...] + part.bias[...])).swapaxes(1, 2)
    e = jnp.where(relevant, jnp.exp(jax.nn.relu(s) + delta[..., None] * count), 0.0)
    total = e.sum(-1, keepdims=True)
    return jnp.einsum('bhij,bjhd->bihd', e / jnp.where(total > 0, total, 1.0), repeat(v))


def sheet_row(seen, sizes):
    """The sheet's row, swept from near to far in blocks of `sizes` keys."""
    s = jnp.array(GOLDEN['scores'], jnp.float32)[None, None, None]
    delta = jnp.full((1, 1, 1), GOLDEN['delta'])
    tiles, carry, end = [], jnp.zeros((1, 1, 1)), s.shape[-1]
    for size in sizes:
        block = slice(end - size, end)
        tile, carry = tra_logits(s[..., block], delta, seen[..., block], carry)
        tiles, end = [tile[0, 0, 0], *tiles], end - size
    return jnp.concatenate(tiles), carry


@pytest.mark.parametrize('sizes', [[5], [2, 3], [1, 1, 1, 1, 1]])
def test_golden_row(sizes):
    logits, carry = sheet_row(jnp.ones((1, 1, 1, 5), bool), sizes)
    at = GOLDEN['relevant']
    assert np.isneginf(np.delete(logits, at)).all() and carry.item() == GOLDEN['count'][0]
    np.testing.assert_allclose(logits[jnp.array(at)], GOLDEN['logits_of_relevant'], atol=1e-6)
    counts = (np.asarray(logits)[at] - np.asarray(GOLDEN['scores'])[at]) / GOLDEN['delta']
    np.testing.assert_allclose(counts, np.asarray(GOLDEN['count'])[at], atol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(logits), GOLDEN['probabilities'], atol=1e-6)


def test_keys_that_are_not_seen_do_not_count():
    logits, carry = sheet_row(jnp.array([True, True, True, False, True])[None, None, None], [5])
    assert carry.item() == 2 and np.isneginf(logits[3])
    np.testing.assert_allclose(logits[1], GOLDEN['scores'][1] + 2 * GOLDEN['delta'], atol=1e-6)


@pytest.mark.parametrize('options', ['', 'threshold=0.7'])
@pytest.mark.full
def test_values_and_gradients_equal_reference(options):
    theirs = check_values_and_gradients(
        build(options), inputs(), lambda e, *a: reference(e.parts[0], *a), TOLERANCE
    )
    assert all(float(jnp.abs(leaf).max()) > 1e-3 for leaf in jax.tree.leaves(theirs))


@pytest.mark.full_but_one
@pytest.mark.parametrize('how', [dict(implementation='dense'), dict(block=(8, 4))], ids=str)
def test_without_a_relevant_key_the_result_is_exactly_zero(how):
    encoding, (q, k, v, x), tok = build(), inputs(), pj.Tokens.of(length=L)
    q, k = jnp.abs(q), -jnp.abs(k)

    def loss(q, k, v, x):
        out = run(encoding, q, k, v, x, tok, **how)
        return out.sum(), out

    run_back = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    (_, out), grads = run_back(q, k, v, x)
    assert not any(np.asarray(a).any() for a in (out, *grads))  # NaN would be true
    # A logit of exactly 0 is not above the threshold.
    zeros = run(encoding, 0 * q, k, v, x, tok, **how)
    assert not np.asarray(zeros).any()


def test_irrelevant_keys_may_be_inserted_anywhere():
    """What no distance in tokens can do: filler, however much of it, changes nothing for the
    queries it is irrelevant to.
    """
    encoding, (q, k, v, x) = build(), inputs()
    q, k = (a.at[..., 0].set(jnp.abs(a[..., 0])) for a in (q, k))
    # Against the first feature, which all queries have positive.
    filler = jnp.zeros(H).at[0].set(-1.0)
    q = q.at[..., 1:].multiply(0.1)
    places = np.flatnonzero(np.arange(3 * L) % 3)[:L]  # a filler, two tokens, a filler, ...
    spread = lambda a, fill: (
        jnp.zeros((B, 3 * L, *a.shape[2:])).at[:].set(fill).at[:, places].set(a)
    )
    expected = run(encoding, q, k, v, x, pj.Tokens.of(length=L))
    arrays = spread(q, 1.0), spread(k, filler), spread(v, 50.0), spread(x, 2.0)
    out = run(encoding, *arrays, pj.Tokens.of(length=3 * L), block=(8, 8))
    np.testing.assert_allclose(out[:, places], expected, atol=TOLERANCE)
    assert np.abs(expected).max() > 0.5


def test_wrong_input():
    q, k, v, x = inputs()
    with pytest.raises(ValueError, match='21 queries, input: none'):
        run(build(), q, k, v, None, pj.Tokens.of(length=L))
    with pytest.raises(ValueError, match='21 queries, input: 5 tokens'):
        run(build(), q, k, v, x[:, :5], pj.Tokens.of(length=L))
