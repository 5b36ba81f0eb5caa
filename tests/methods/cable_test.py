"""CABLE: the sheet's numbers, ALiBi as a limit, an explicit reference, sums that reach thousands,
documents, decoding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.cable import cable_bias
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden
from tests.methods.from_input import check_values_and_gradients, draw_inputs, run

GOLDEN = golden('cable')
B, N, K, H, D, L = 2, 4, 2, 8, 12, 21
TOLERANCE = 1e-5  # float32 sums of 21 costs


def build(options='', *, std=0.5, **context):
    """The encoding with its mask, costs different from token to token."""
    sizes = dict(heads=N, kv_heads=K, head_dim=H, model_dim=D) | context
    arguments = ', '.join(filter(None, [options, f'std={std}']))
    return pj.make(f'cable({arguments})', causal=True, rngs=nnx.Rngs(0), **sizes)


def inputs(length=L, seed=3):
    return draw_inputs((B, N, K, H, D), length, seed)


def total_bias(costs, sizes=None, queries=None):
    """[T, S] of one head, swept from near to far in blocks of `sizes` keys."""
    costs = jnp.asarray(costs, jnp.float32)[None, None]
    index = jnp.arange(costs.shape[2])[None]
    queries = index if queries is None else jnp.asarray(queries)[None]
    tiles, carry, end = [], jnp.zeros((1, 1, queries.shape[1])), costs.shape[2]
    for size in sizes or [end]:
        tile, carry = cable_bias(
            costs[..., end - size : end], queries, index[:, end - size : end], carry
        )
        tiles, end = [np.asarray(tile[0, 0]), *tiles], end - size
    return np.concatenate(tiles, axis=1)


def reference(part, q, k, v, x):
    """The definition: running sums per head, one causal document a row."""
    total = jnp.cumsum(jnp.log1p(jnp.exp(x @ part.kernel[...] + part.bias[...])), axis=1).swapaxes(
        1, 2
    )
    repeat = lambda a: jnp.repeat(a, N // K, axis=2)
    s = jnp.einsum('bihd,bjhd->bhij', q, repeat(k)) * (
        H**-0.5 if part.scaled_by is None else part.scaled_by * H**-0.5
    )
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
    bias = total_bias(GOLDEN['costs'], sizes)
    assert bias[-1].tolist() == GOLDEN['bias_of_last']
    assert total_bias(GOLDEN['costs'], sizes, [4]).tolist() == [
        GOLDEN['bias_of_last']
    ]  # a decode step


def test_laws_of_the_bias():
    costs = np.random.default_rng(0).random(L)
    bias, (i, j) = total_bias(costs, [8, 8, 5]), np.mgrid[:L, :L]
    assert not bias.diagonal().any()
    assert (np.diff(bias, axis=1)[j[:, 1:] <= i[:, 1:]] > 0).all()  # falls with the distance
    for middle in range(L):
        through = bias[:, middle, None] + bias[None, middle]
        between = (j <= middle) & (middle <= i)
        np.testing.assert_allclose(bias[between], through[between], atol=TOLERANCE)


def test_equal_costs_are_alibi():
    encoding, arrays, tok = build(std=0.0), inputs(), pj.Tokens.of(length=L)
    alibi = pj.make('alibi()', causal=True, heads=N)
    encoding.parts[0].bias[...] = jnp.log(jnp.expm1(alibi.parts[0].slopes[...]))
    np.testing.assert_allclose(
        run(encoding, *arrays, tok, block=8), run(alibi, *arrays, tok, block=8), atol=TOLERANCE
    )


@pytest.mark.parametrize('options', ['', 'scale=1.0'])
@pytest.mark.full
def test_values_and_gradients_equal_reference(options):
    check_values_and_gradients(
        build(options), inputs(), lambda e, *a: reference(e.parts[0], *a), TOLERANCE
    )


def test_scale_one_takes_the_root_of_the_width_off():
    (q, *others), tok = inputs(), pj.Tokens.of(length=L)
    np.testing.assert_allclose(
        run(build('scale=1.0'), q, *others, tok),
        run(build(), q * H**0.5, *others, tok),
        atol=TOLERANCE,
    )


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
        np.testing.assert_allclose(
            bias, expected, atol=4e-5
        )  # 90 costs lie behind the first query: steps of 8e-6
    sums = np.cumsum(costs.astype(np.float32), dtype=np.float32)
    assert (
        np.abs(np.take(sums, near) - sums[i] - expected).max() > 4e-4
    )  # what running sums in float32 would give


def test_packing_and_left_padding():
    encoding, arrays, cut = build(), inputs(), 9
    later = jnp.arange(L)[None].repeat(B, 0) >= cut
    first = run(encoding, *(a[:, :cut] for a in arrays), pj.Tokens.of(length=cut))
    second = run(encoding, *(a[:, cut:] for a in arrays), pj.Tokens.of(length=L - cut))
    packed = run(encoding, *arrays, pj.Tokens.of(segment=later.astype(int)), block=(5, 8))
    padded = run(encoding, *arrays, pj.Tokens.of(valid=later), block=(5, 8))
    np.testing.assert_allclose(packed, jnp.concatenate([first, second], 1), atol=TOLERANCE)
    np.testing.assert_allclose(padded[:, cut:], second, atol=TOLERANCE)


def test_padding_within_a_text_costs_nothing():
    encoding, arrays = build(), inputs()
    valid = np.arange(L) % 5 != 2
    padded = run(encoding, *arrays, pj.Tokens.of(valid=valid[None]), block=(5, 8))
    alone = run(encoding, *(a[:, valid] for a in arrays), pj.Tokens.of(length=int(valid.sum())))
    np.testing.assert_allclose(padded[:, valid], alone, atol=TOLERANCE)


def test_a_token_moves_only_what_lies_across_it():
    """Content decides how far back a head sees, which no function of the distance can: one
    expensive token cuts it off.
    """
    encoding, (q, k, _, x), token = build(), inputs(), 9
    costly = x.at[:, token].set(40.0 * encoding.parts[0].kernel[...][:, 0])
    values = jnp.broadcast_to(jnp.eye(L)[None, :, None], (B, L, K, L))
    weights = lambda x: run(encoding, 0 * q, 0 * k, values, x, pj.Tokens.of(length=L))
    before, after = np.asarray(weights(x))[:, :, 0], np.asarray(weights(costly))[:, :, 0]
    np.testing.assert_array_equal(after[:, :token], before[:, :token])
    assert before[:, token, :token].sum(-1).min() > 0.1 and after[:, token:, :token].max() < 1e-4


def test_wrong_input():
    for scale in (0.0, -1.0):
        with pytest.raises(SpecError, match=f'positive.*got {scale}'):
            build(f'scale={scale}')
    with pytest.raises(SpecError, match='std must be at least 0, got -1.0'):
        build(std=-1.0)
    with pytest.raises(SpecError, match='cable is defined for causal attention only'):
        pj.make('cable()', causal=False, heads=N, head_dim=H, model_dim=D)
    with pytest.raises(SpecError, match='cable is defined for causal attention only, full lets'):
        pj.make('cable() | full()', heads=N, head_dim=H, model_dim=D)
    q, k, v, x = inputs()
    with pytest.raises(ValueError, match='21 keys, input: none'):
        run(build(), q, k, v, None, pj.Tokens.of(length=L))
    with pytest.raises(ValueError, match='21 keys, input: 5 tokens'):
        run(build(), q, k, v, x[:, :5], pj.Tokens.of(length=L))
