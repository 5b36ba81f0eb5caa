"""Contextual multiplicative GRAPE: its start, RoPE at increments of one, and a loop over pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.double import Double
from posenc_jax.methods.grape_m_contextual import (
    grape_m_contextual_increments,
    grape_m_contextual_match,
)
from tests.golden_files import golden_suite
from tests.methods.from_input import draw_inputs, run
from tests.methods.pair_logits import logits
from tests.methods.pairs import draw
from tests.refusals import refused

N, K, H, D, L = 4, 2, 8, 12, 14
INPUTS = draw_inputs((1, N, K, H, D), L)
TOLERANCE = 2e-5  # phases of some 20 rad in float32


def build(options='', *, moved=True, **context):
    sizes = dict(kv_heads=K, head_dim=H, model_dim=D) | context
    part = pj.make(f'grape_m_contextual({options})', **sizes)
    if moved:
        gain = 4.0 if part.gate == 'sigmoid' else 0.5
        part.kernel[...] = gain * jnp.asarray(draw(7, *part.kernel.shape))
        part.log_freq[...] += 0.3 * jnp.asarray(draw(8, *part.log_freq.shape))
    return part


def positions_of(case):
    """Of the queries of one text, as the carry behind all its keys, in blocks of one key."""
    omega, index = jnp.asarray(case['increments'])[None, None], jnp.arange(3)[None]
    zero, carry = jnp.zeros((1, 1, 3, 2)), Double.of(jnp.zeros((1, 1, 3)))
    for key in (2, 1, 0):
        own = slice(key, key + 1)
        _, carry = grape_m_contextual_match(
            zero, zero[:, :, own], omega[..., own], jnp.ones(1), index, index[:, own], carry
        )
    return carry.high[0, 0]


test_golden = golden_suite('grape_m_contextual', atol=2e-7, rtol=2e-6) | {
    'bias': lambda: build(moved=False).bias[0],
    'increment.*': lambda _, gate: grape_m_contextual_increments(build(moved=False).bias[0], gate),
    'sums.positions': positions_of,
}


def by_pairs(part, gate='sigmoid'):
    """The definition: running sums of increments, and one rotation matrix for each token."""
    q, k, _, x = (np.asarray(a, np.float64)[0] for a in INPUTS)
    a = x @ np.asarray(part.kernel[...], np.float64) + np.asarray(part.bias[...])
    omega = np.log1p(np.exp(a)) if gate == 'softplus' else 1 / (1 + np.exp(-a / 16))
    position = np.cumsum(omega, axis=0) - omega
    theta = np.exp(np.asarray(part.log_freq[...], np.float64))
    complex_ = lambda v: v[: H // 2] + 1j * v[H // 2 :]
    out = np.zeros((1, N, L, L))
    for h, i in np.ndindex(N, L):
        for j in range(i + 1):
            own = h // (N // K)
            apart = position[i] - position[j]
            turn = np.exp(1j * theta * apart[own if len(apart) > 1 else 0])
            product = complex_(q[i, h]) * turn * complex_(k[j, own]).conj()
            out[0, h, i, j] = product.real.sum() / H**0.5
    return out


@pytest.mark.parametrize('options', ['', 'per_head=True', 'gate="softplus"'])
def test_logits_equal_a_loop_over_pairs(options):
    part, (q, k, _, x) = build(options), INPUTS
    found = np.tril(logits(part, q, k, None, x))
    np.testing.assert_allclose(found, by_pairs(part, part.gate), atol=TOLERANCE)


def test_it_starts_as_rope_with_positions_divided():
    q, k, _, x = INPUTS
    spread = pj.Tokens.of(positions=np.arange(L)[None] * 0.3937196)
    expected = logits(pj.make('rope()', head_dim=H), q, k, spread)
    found = logits(build(moved=False), q, k, None, x)
    np.testing.assert_allclose(np.tril(found), np.tril(expected), atol=TOLERANCE)


def test_increments_of_one_are_rope():
    q, k, _, x = INPUTS
    part = build(moved=False)
    part.bias[...] = jnp.full(1, 1e4)
    expected = logits(pj.make('rope()', head_dim=H), q, k)
    np.testing.assert_allclose(
        np.tril(logits(part, q, k, None, x)), np.tril(expected), atol=TOLERANCE
    )


def test_padding_between_tokens_adds_nothing():
    encoding = pj.chain(build(), pj.make('causal()'))
    valid = np.arange(L) % 3 != 1
    padded = run(encoding, *INPUTS, pj.Tokens.of(valid=valid[None]), block=(8, 5))
    alone = run(encoding, *(a[:, valid] for a in INPUTS), pj.Tokens.of(length=int(valid.sum())))
    np.testing.assert_allclose(padded[:, valid], alone, atol=TOLERANCE)


@pytest.mark.parametrize('theta', [1.0, 0.37])
def test_logits_keep_their_digits_over_many_blocks(theta):
    """Those of the last of 391 blocks of 256 keys, at 39,410 to 39,510 from the query: their error
    is that of the angles within one block.
    """
    blocks, size = 391, 256
    one, theta = np.float32(0.3937196), np.float32(theta)
    omega, index, query = jnp.full((1, 1, size), one), jnp.arange(size)[None], jnp.array([[size]])
    q, k = jnp.array([[[[1.0, 0.0]]]]), jnp.full((1, 1, size, 2), 2**-0.5)

    def block(carry, _):
        s, carry = grape_m_contextual_match(q, k, omega, jnp.full(1, theta), query, index, carry)
        return carry, s

    start = Double.of(jnp.zeros((1, 1, 1)))
    total, s = jax.lax.scan(block, start, None, length=blocks)
    far = np.float64(one) * (blocks * size - np.arange(size))
    assert abs(np.asarray(total).item() - far[0]) < 1e-7
    expected = (np.cos(theta * far) + np.sin(theta * far)) / 2
    np.testing.assert_allclose(s[-1, 0, 0, 0], expected, atol=TOLERANCE)


test_wrong_calls = refused() | {
    'of one token per key: 14 keys, input: none': lambda: logits(build(), *INPUTS[:2]),
    'of one token per key: 14 keys, input: 3 tokens': lambda: logits(
        build(), *INPUTS[:2], None, INPUTS[3][:, :3]
    ),
    "gate='relu' is not one of 'sigmoid', 'softplus'": lambda: build('gate="relu"'),
}
