"""CABLE: the sheet's numbers, ALiBi as a limit, an explicit reference, and sums that reach
thousands.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.cable import cable_bias
from tests.golden_files import golden
from tests.methods.from_input import check_values_and_gradients, draw_inputs, run
from tests.refusals import refused

GOLDEN = golden('cable')
B, N, K, H, D, L = 2, 4, 2, 8, 12, 21
TOLERANCE = 1e-5  # float32 sums of 21 costs


def build(options='', *, std=0.5, **context):
    """The encoding with its mask, costs different from token to token."""
    sizes = dict(heads=N, kv_heads=K, head_dim=H, model_dim=D) | context
    arguments = ', '.join(filter(None, [options, f'std={std}']))
    return pj.make(f'cable({arguments})', causal=True, rngs=nnx.Rngs(0), **sizes)


INPUTS = draw_inputs((B, N, K, H, D), L)


def total_bias(costs, sizes=None, queries=None):
    """[T, S] of one head, swept from near to far in blocks of `sizes` keys."""
    costs = jnp.asarray(costs, jnp.float32)[None, None]
    index = jnp.arange(costs.shape[2])[None]
    queries = index if queries is None else jnp.asarray(queries)[None]
    tiles, carry, end = [], jnp.zeros((1, 1, queries.shape[1])), costs.shape[2]
    for size in sizes or [end]:
        block = slice(end - size, end)
        tile, carry = cable_bias(costs[..., block], queries, index[:, block], carry)
        tiles, end = [np.asarray(tile[0, 0]), *tiles], end - size
    return np.concatenate(tiles, axis=1)


def reference(part, q, k, v, x):
    """The definition: running sums per head, one causal document a row."""
    costs = jnp.log1p(jnp.exp(x @ part.kernel[...] + part.bias[...]))
    total = jnp.cumsum(costs, axis=1).swapaxes(1, 2)
    repeat = lambda a: jnp.repeat(a, N // K, axis=2)
    scale = 1.0 if part.scaled_by is None else part.scaled_by
    s = jnp.einsum('bihd,bjhd->bhij', q, repeat(k)) * scale * H**-0.5
    s = s - (total[..., :, None] - total[..., None, :])
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones(s.shape[2:], bool)), s, -jnp.inf), axis=-1)
    return jnp.einsum('bhij,bjhd->bihd', w, repeat(v))


@pytest.mark.parametrize('block', [4, 1, 3])
def test_golden_start(block):
    encoding = build(std=0.0, heads=1, kv_heads=1, head_dim=4)
    zero, x = jnp.zeros((1, 4, 1, 4)), jax.random.normal(jax.random.key(0), (1, 4, D))
    out = run(
        encoding, zero, zero, jnp.eye(4)[None, :, None], x, pj.Tokens.of(length=4), block=block
    )
    np.testing.assert_allclose(out[0, 3, 0], GOLDEN['start_probabilities'], atol=1e-6)
    tok = pj.Tokens.of(length=4)
    *_, tk = encoding.project(zero, zero, zero, tok, tok, x)
    np.testing.assert_allclose(tk.feats['cable'], GOLDEN['start_cost'], atol=1e-7)


@pytest.mark.parametrize('sizes', [[5], [1, 1, 1, 1, 1], [2, 3]])
def test_golden_bias(sizes):
    last = GOLDEN['bias_of_last']
    assert total_bias(GOLDEN['costs'], sizes)[-1].tolist() == last
    assert total_bias(GOLDEN['costs'], sizes, [4]).tolist() == [last]  # a decode step


def test_equal_costs_are_alibi():
    encoding = build(std=0.0)
    tok = pj.Tokens.of(length=L)
    alibi = pj.make('alibi()', causal=True, heads=N)
    encoding.parts[0].bias[...] = jnp.log(jnp.expm1(alibi.parts[0].slopes[...]))
    found, expected = (run(part, *INPUTS, tok, block=8) for part in (encoding, alibi))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize('options', ['', 'scale=1.0'])
@pytest.mark.full
def test_values_and_gradients_equal_reference(options):
    by_definition = lambda e, *a: reference(e.parts[0], *a)
    check_values_and_gradients(build(options), INPUTS, by_definition, TOLERANCE)


def test_scale_one_takes_the_root_of_the_width_off():
    (q, *others), tok = INPUTS, pj.Tokens.of(length=L)
    found = run(build('scale=1.0'), q, *others, tok)
    np.testing.assert_allclose(found, run(build(), q * H**0.5, *others, tok), atol=TOLERANCE)


@pytest.mark.full_but_one
@pytest.mark.parametrize('queries', [[8191], [8100, 8191]], ids=['decode', 'rows'])
def test_nearby_differences_keep_their_digits_when_sums_reach_thousands(queries):
    """8192 costs about ln 2: the whole sum is 5700, where a float32 has steps of 5e-4; of the near
    64 keys nothing is lost.
    """
    costs = np.random.default_rng(1).uniform(0.0, 1.4, 8192)
    exact = np.cumsum(costs.astype(np.float32).astype(np.float64))
    i = np.array(queries)[:, None]
    near = i - np.arange(64)[None]
    expected = np.take(exact, near) - exact[i]
    assert exact[-1] > 5000
    for sizes in ([8192], [256] * 32):
        bias = np.take_along_axis(total_bias(costs, sizes, queries), near, axis=1)
        # 90 costs lie behind the first query: steps of 8e-6.
        np.testing.assert_allclose(bias, expected, atol=4e-5)
    # Running sums in float32 would lose more.
    sums = np.cumsum(costs.astype(np.float32), dtype=np.float32)
    assert np.abs(np.take(sums, near) - sums[i] - expected).max() > 4e-4


def test_padding_within_a_text_costs_nothing():
    encoding, arrays = build(), INPUTS
    valid = np.arange(L) % 5 != 2
    padded = run(encoding, *arrays, pj.Tokens.of(valid=valid[None]), block=(5, 8))
    alone = run(encoding, *(a[:, valid] for a in arrays), pj.Tokens.of(length=int(valid.sum())))
    np.testing.assert_allclose(padded[:, valid], alone, atol=TOLERANCE)


def test_a_token_moves_only_what_lies_across_it():
    """Content decides how far back a head sees, which no function of the distance can: one
    expensive token cuts it off.
    """
    encoding, (q, k, _, x), token = build(), INPUTS, 9
    costly = x.at[:, token].set(40.0 * encoding.parts[0].kernel[...][:, 0])
    values = jnp.broadcast_to(jnp.eye(L)[None, :, None], (B, L, K, L))
    weights = lambda x: run(encoding, 0 * q, 0 * k, values, x, pj.Tokens.of(length=L))
    before, after = np.asarray(weights(x))[:, :, 0], np.asarray(weights(costly))[:, :, 0]
    np.testing.assert_array_equal(after[:, :token], before[:, :token])
    assert before[:, token, :token].sum(-1).min() > 0.1 and after[:, token:, :token].max() < 1e-4


test_wrong_calls = refused() | {
    '21 keys, input: none': lambda: run(build(), *INPUTS[:3], None, pj.Tokens.of(length=L)),
    '21 keys, input: 5 tokens': lambda: run(
        build(), *INPUTS[:3], INPUTS[3][:, :5], pj.Tokens.of(length=L)
    ),
}
