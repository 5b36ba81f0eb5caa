"""GRAPE-AP: ALiBi where nothing is projected, a loop over pairs, and sums that keep digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.fox import fox_bias
from posenc_jax.methods.grape_ap import grape_ap_bias, grape_ap_unit
from tests.golden_files import golden, golden_suite
from tests.methods.from_input import draw_inputs, run
from tests.methods.pair_logits import logits
from tests.refusals import refused

GOLDEN = golden('grape_ap')
N, K, H, D, P, L = 4, 2, 8, 12, 4, 14
INPUTS = draw_inputs((1, N, K, H, D), L)


def build(options='', *, gain=4.0, **context):
    sizes = dict(heads=N, model_dim=D) | context
    arguments = ', '.join(filter(None, [f'size={P}', options]))
    part = pj.make(f'grape_ap({arguments})', rngs=nnx.Rngs(0), **sizes)
    part.kernel[...] *= gain
    return part


def bias_of(part, tok=None, x=INPUTS[3]):
    """What is added to the logits of keys up to the query, [N, T, S]."""
    zero = jnp.zeros((1, x.shape[1], part.slopes.shape[0], H))
    return np.tril(logits(part, zero, zero, tok, x)[0])


def row_of_nothing():
    part = build(gain=0.0, heads=GOLDEN['heads'])
    return bias_of(part, x=jnp.ones((1, GOLDEN['far'] + 1, D)))[:, -1]


test_golden = golden_suite('grape_ap', atol=1e-7) | {
    'bias': lambda: row_of_nothing()[:, 0],
    'last_row': lambda: row_of_nothing()[0],
}


def by_pairs(part, pos, relative=False):
    """The definition, in float64."""
    x = np.asarray(INPUTS[3][0], np.float64)
    p = np.einsum('sd,dnp->nsp', x, np.asarray(part.kernel[...], np.float64))
    complex_ = lambda a: a[: P // 2] + 1j * a[P // 2 :]
    out = np.zeros((N, L, L))
    for h, i in np.ndindex(N, L):
        psi = np.zeros(L)
        for m in range(i + 1):
            unit = p[h, m] / np.sqrt(np.mean(p[h, m] ** 2))
            turn = np.exp(1j * (pos[m] - pos[i] * relative))
            along = (complex_(p[h, i]).conj() * turn * complex_(unit)).real.sum() / P
            psi[m] = -(2.0 ** (-8 * (h + 1) / N)) * np.log1p(np.exp(-along))
        for j in range(i + 1):
            out[h, i, j] = psi[j + 1 : i + 1].sum()
    return out


@pytest.mark.parametrize('relative', [False, True])
def test_biases_equal_a_loop_over_pairs(relative):
    part, pos = build(f'relative={relative}'), 2 * np.arange(L) + 3
    found = bias_of(part, pj.Tokens.of(positions=pos[None]))
    np.testing.assert_allclose(found, by_pairs(part, pos, relative), atol=5e-6)


def test_without_projection_it_is_alibi_with_slopes_times_ln_2():
    alibi = pj.make('alibi()', heads=N)
    pos = jnp.arange(L)[None]
    expected = np.tril(np.log(2) * np.asarray(alibi.bias(pos, pos)[0]))
    np.testing.assert_allclose(bias_of(build(gain=0.0)), expected, rtol=1e-5, atol=1e-6)


def test_the_bias_is_never_positive_and_never_rises_with_the_distance():
    bias = bias_of(build())
    for i in range(L):
        assert (np.diff(bias[:, i, : i + 1], axis=-1) >= 0).all()
        assert (bias[:, i, i] == 0).all()
    assert bias.max() == 0 and bias.min() < -0.5


def test_a_query_of_its_own_view_is_no_forget_gate():
    """What a token costs depends on the query: rows are not shifted copies of one running sum."""
    bias = bias_of(build())
    cost = np.diff(bias, axis=-1)[0]
    assert np.abs(cost[L - 1, : L - 3] - cost[L - 2, : L - 3]).max() > 0.01


def test_queries_of_one_view_are_a_forget_gate():
    """Where p_i is the same for all tokens, what a token costs does not depend on the query."""
    part, x = build(), jnp.broadcast_to(INPUTS[3][:, :1], (1, L, D))
    p = np.einsum('d,dnp->np', x[0, 0], part.kernel[...]).astype(np.float64)
    unit = p / np.sqrt((p**2).mean(-1, keepdims=True))
    cross = np.roll(unit, P // 2, axis=-1) * np.where(np.arange(P) < P // 2, -1, 1)
    angle = np.arange(L)[:, None]
    along = np.cos(angle) * (p * unit).sum(-1) + np.sin(angle) * (p * cross).sum(-1)
    slopes = 2.0 ** (-8 * np.arange(1, N + 1) / N)
    log_gates = jnp.asarray((-slopes * np.log1p(np.exp(-along / P))).T[None], jnp.float32)
    index = jnp.arange(L)[None]
    expected, _ = fox_bias(log_gates, index, index, jnp.zeros((1, N, L)))
    np.testing.assert_allclose(bias_of(part, x=x), np.tril(expected[0]), atol=5e-6)
    assert np.ptp(log_gates, axis=-1).min() > 1e-4  # gates that differ from token to token


def test_a_zero_vector_has_no_direction():
    np.testing.assert_array_equal(grape_ap_unit(jnp.zeros((1, 4))), 0.0)
    assert np.isfinite(jax.grad(lambda p: grape_ap_unit(p).sum())(jnp.zeros((1, 4)))).all()


def test_near_keys_keep_their_digits_behind_many_blocks():
    """16,384 keys add up to thousands, where a difference of float32 sums has steps of 5e-4; the
    sums over the nearest 64 keys have lost nothing.
    """
    keys, size = 16_384, 1024
    turned = np.random.default_rng(0).standard_normal((1, 1, keys, 2)).astype(np.float32)
    p, counted = jnp.ones((1, 1, 1, 2)), jnp.ones((1, 1, size), bool)
    psi = -np.log1p(np.exp(-turned[0, 0].astype(np.float64).sum(-1) / 2))
    exact = np.append(np.cumsum(psi[::-1])[::-1][1:], 0.0)
    assert exact[0] < -5000
    blocks = jnp.asarray(turned).reshape(1, 1, -1, size, 2)
    step = lambda carry, block: grape_ap_bias(p, block, jnp.ones(1), counted, carry)[::-1]
    _, found = jax.lax.scan(step, jnp.zeros((1, 1, 1)), jnp.moveaxis(blocks, 2, 0), reverse=True)
    found = np.asarray(found).ravel()
    np.testing.assert_allclose(found[-64:], exact[-64:], atol=1e-5)
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=1e-5)


def test_padding_between_tokens_adds_nothing():
    encoding, valid = pj.chain(build('relative=True'), pj.make('causal()')), np.arange(L) % 3 != 1
    padded = run(encoding, *INPUTS, pj.Tokens.of(valid=valid[None]), block=(8, 5))
    alone = run(encoding, *(a[:, valid] for a in INPUTS), pj.Tokens.of(length=int(valid.sum())))
    np.testing.assert_allclose(padded[:, valid], alone, atol=1e-5)


test_wrong_calls = refused() | {
    'size must be at least 2 and even, got 3': lambda: pj.make(
        'grape_ap(size=3)', heads=2, model_dim=4
    ),
    '14 queries, 14 keys, input: none': lambda: logits(build(), *INPUTS[:2]),
    '14 queries, 14 keys, input: 3 tokens': lambda: logits(
        build(), *INPUTS[:2], None, INPUTS[3][:, :3]
    ),
    'one position per token': lambda: bias_of(build(), pj.Tokens.of(positions=np.zeros((1, L, 2)))),
}
