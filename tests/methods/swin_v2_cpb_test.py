"""Swin V2: coordinates, bias and cosines by hand, attention pair by pair in float64, larger windows
by the same network, and the bias alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.swin_v2_cpb import (
    swin_v2_cpb_coordinates,
    swin_v2_cpb_logits,
    swin_v2_cpb_network,
)
from tests.golden_files import golden, golden_suite
from tests.methods.pairs import attend, draw, grid, qkv
from tests.refusals import refused

GOLDEN = golden('swin_v2_cpb')['values']
N, K, H = 4, 2, 8
CELLS = grid(3, 4, 0)
TOK, INPUTS = pj.Tokens.of(positions=CELLS), qkv(12, N, K, H)


def make(arguments='3, 4, hidden=6'):
    """With random weights of order one."""
    part = pj.make(f'swin_v2_cpb({arguments})', heads=N, rngs=nnx.Rngs(0))
    for number, param in enumerate((part.w1, part.b1, part.w2)):
        param[...] = jnp.asarray(draw(number, *param.shape))
    if part.tau is not None:
        part.tau[...] = jnp.log(jnp.array([10.0, 3.0, 500.0, 1.0]))
    return part


def coordinates():
    """Offsets that are these shares of the largest one, 4 in a window of 5 x 5."""
    offset = 4 * jnp.array(GOLDEN['shares'])
    return swin_v2_cpb_coordinates(jnp.stack([offset, -offset], axis=-1), 5, 5)


def bias_of(number):
    """The bias where the network gives this number for every offset."""
    network = jnp.zeros((1, 2)), jnp.ones(1), jnp.full((1, 1), number)
    return swin_v2_cpb_network(jnp.ones((1, 2)), *network)[0, 0]


def cosines(factor):
    q = jnp.array([[[[3.0, 4.0]]]])
    k = jnp.array([[[[2.0, 0.0], [0.0, 0.1]]]])
    return swin_v2_cpb_logits(q, k, jnp.log(jnp.array([factor])))[0, 0, 0]


test_golden = golden_suite('swin_v2_cpb', atol=2e-5) | {
    'coordinates': lambda: coordinates()[:, 0],
    'bias_of_zero': lambda: bias_of(0.0),
    'bias_of_log_3': lambda: bias_of(np.log(3.0)),
    'cosines_times_10': lambda: cosines(10.0),
    'cosines_times_100': (lambda: cosines(1e5), {'rtol': 1e-5}),
}


def test_coordinates_are_odd():
    np.testing.assert_array_equal(coordinates()[:, 1], -coordinates()[:, 0])


def reference(part, positions, cosine=True):
    """The whole formula pair by pair, float64."""
    q, k, v = (np.float64(a[0]) for a in INPUTS)
    k, v = k.repeat(N // K, 1), v.repeat(N // K, 1)
    w1, b1, w2 = (np.float64(param[...]) for param in (part.w1, part.b1, part.w2))
    s = np.zeros((N, len(q), len(q)))
    for i, a in enumerate(positions):
        for j, b in enumerate(positions):
            x = 8 * (a - b) / np.array([2, 3])  # the window of training has 3 x 4 cells
            z = np.sign(x) * np.log2(np.abs(x) + 1) / np.log2(8)
            bias = 16 / (1 + np.exp(-np.maximum(w1 @ z + b1, 0) @ w2))
            logit = (q[i] * k[j]).sum(-1) / H**0.5
            if cosine:
                norms = np.linalg.norm(q[i], axis=-1) * np.linalg.norm(k[j], axis=-1)
                logit = np.array([10, 3, 100, 1]) * (q[i] * k[j]).sum(-1) / norms
            s[:, i, j] = logit + bias
    w = np.exp(s - s.max(-1, keepdims=True))
    return np.einsum('nts,snh->tnh', w / w.sum(-1, keepdims=True), v)


@pytest.mark.full_but_one
@pytest.mark.parametrize('cosine', [True, False])
def test_attention_pair_by_pair(cosine):
    part = make(f'3, 4, hidden=6, cosine={cosine}')
    expected = reference(part, CELLS[0], cosine)
    for block in (None, (5, 7)):
        found = attend(part, *INPUTS, TOK, block=block)[0]
        np.testing.assert_allclose(found, expected, atol=5e-5)


def test_a_larger_window_reads_the_same_network():
    """Offsets that training saw have the bias that they had; larger ones leave the trained range
    by their logarithm alone.
    """
    small, large = make(), make('3, 4, size=(6, 8), hidden=6')
    pos = jnp.asarray(CELLS)
    np.testing.assert_allclose(large.bias(pos, pos), small.bias(pos, pos), atol=1e-5)
    wide = grid(6, 8, 0)[:, ::4]
    tok = pj.Tokens.of(positions=wide)
    expected = reference(large, wide[0])
    np.testing.assert_allclose(attend(large, *INPUTS, tok)[0], expected, atol=5e-5)
    most = swin_v2_cpb_coordinates(jnp.array([2 * 2, 2 * 3]), 3, 4)
    assert (most < 1.3 * swin_v2_cpb_coordinates(jnp.array([2, 3]), 3, 4)).all()


def test_bounds():
    """The bias lies between 0 and 16; without first weights it is 8 for all pairs."""
    part, pos = make(), jnp.asarray(grid(3, 4))
    bias = part.bias(pos, pos)
    assert 0 < bias.min() and bias.max() < 16 and bias[:, :, 1:, 1:].std() > 0.1
    np.testing.assert_array_equal(bias[:, :, 0], 8)
    np.testing.assert_array_equal(bias[:, :, :, 0], 8)
    part.w1[...], part.b1[...] = 0 * part.w1[...], 0 * part.b1[...]
    np.testing.assert_array_equal(part.bias(pos, pos), 8)


def test_the_lengths_of_queries_and_keys_do_not_matter():
    q, k, v = INPUTS
    part = make()
    expected = attend(part, q, k, v, TOK)
    np.testing.assert_allclose(attend(part, 7 * q, 0.01 * k, v, TOK), expected, atol=1e-5)
    zero = attend(part, 0 * q, k, v, TOK)
    assert np.isfinite(zero).all()
    # A query without length has the weights of the bias alone.
    alone = attend(make('3, 4, hidden=6, cosine=False'), 0 * q, k, v, TOK)
    np.testing.assert_allclose(zero, alone, atol=1e-5)


def test_the_factor_is_10_at_first_and_at_most_100():
    part = pj.make('swin_v2_cpb(3, 4, hidden=6)', heads=N, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(np.exp(part.tau[...]), 10, rtol=1e-6)
    slope = jax.grad(lambda tau: swin_v2_cpb_logits(*(jnp.ones((1, 1, 1, 2)),) * 2, tau).sum())
    assert slope(jnp.array([4.0])) > 0 and slope(jnp.array([5.0])) == 0  # ln 100 = 4.6


def test_cosines_are_logits_of_their_own():
    part, bias = make(), make('3, 4, hidden=6, cosine=False')
    assert part.traits == {'forms_logits'} and not bias.traits and bias.tau is None
    assert part.opens('logits') and bias.opens('logits')
    # Other parts of a chain change the cosines, wherever they stand.
    cap = pj.make('soft_cap(5.0)')
    first, last = (attend(pj.chain(*both), *INPUTS, TOK) for both in ((cap, part), (part, cap)))
    np.testing.assert_array_equal(first, last)


test_wrong_calls = refused() | {
    'rows must be at least 2 and at most 256, got 1': lambda: make('1, 4'),
    'columns must be at least 2': lambda: make('4, 1'),
    r'swin_v2_cpb: the tokens stand in a window of 3 x 4 cells, and the table is for one of '
    r'2 x 4, which is smaller; use size=\(3, 4\)': lambda: make('2, 4, hidden=6').project(
        None, None, None, TOK, TOK
    ),
    'parameters of 4 heads, the queries have 2': lambda: attend(make(), *qkv(12, 2), TOK),
    r'positions \[B, L, 2\]': lambda: attend(make(), *INPUTS),
}
