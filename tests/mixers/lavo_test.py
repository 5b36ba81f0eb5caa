"""LAVO: the weights by hand, the definition token by token in float64, and limiting cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.base.orthonormal import orthonormal_rows
from posenc_jax.mixers.lavo import lavo
from posenc_jax.mixers.piecewise_scan import scan_pieces
from tests.golden_files import golden
from tests.mixers.small import draw

VALUES = golden('lavo')['values']


@jax.jit
def attended(q, c, basis, rho, beta):
    """The results of the heads, [B, T, H, D]."""
    batch, length = q.shape[:2]
    rank = jnp.broadcast_to(jnp.arange(length), (batch, length))
    rows = q, c, jnp.ones((batch, length), bool), rank, jnp.zeros((batch, length), bool)
    state = jnp.zeros((batch, *basis.shape[:2])), jnp.zeros((batch, rho.shape[1], *c.shape[2:]))
    return scan_pieces(lambda state, rows: lavo(basis, rho, beta, state, rows), state, rows, 4)[0]


def definition(q, c, basis, rho, beta):
    """The results of one row, from M of each block, float64."""
    q, c, basis, rho, beta = (np.float64(a) for a in (q, c, basis, rho, beta))
    out, window, width = np.zeros_like(q), rho.shape[1], q.shape[-1]
    for i, head in np.ndindex(q.shape[:2]):
        start = window * (i // window)
        keys, bias = c[start : i + 1, head], rho[head, i - np.arange(start, i + 1)]
        if start:
            share = (c[:start, head] @ basis[head].T).mean(0)
            keys = np.concatenate([share[:, None] * basis[head], keys])
            bias = np.concatenate([beta[head], bias])
        weight = np.exp(keys @ q[i, head] / np.sqrt(width) + bias)
        out[i, head] = weight @ keys / weight.sum()
    return out


def test_golden_weights():
    c = np.float32(VALUES['stream']).reshape(1, 4, 1, 1)
    at = lambda rho, beta: attended(
        0 * c, c, np.ones((1, 1, 1), np.float32), np.float32([rho]), np.float32([[beta]])
    ).ravel()
    np.testing.assert_allclose(at([0, 0], 0), VALUES['no_bias'], rtol=1e-6)
    np.testing.assert_allclose(at([np.log(3), 0], 0), VALUES['near_three'], rtol=1e-6)
    np.testing.assert_allclose(at([0, 0], np.log(2)), VALUES['memory_twice'], rtol=1e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize('window', [1, 3, 4, 20])
def test_the_definition(window):
    q, c = draw(0, 2, 19, 2, 4), draw(1, 2, 19, 2, 4)
    basis = orthonormal_rows(draw(2, 2, 3, 4))
    rho, beta = draw(3, 2, window), draw(4, 2, 3)
    out = attended(q, c, basis, rho, beta)
    for row in range(2):
        np.testing.assert_allclose(
            out[row], definition(q[row], c[row], basis, rho, beta), atol=2e-6
        )


def test_a_full_basis_remembers_the_mean():
    """With r = D the rows of the memory add up to the mean of everything before the block. Queries
    of 0 weigh all rows alike.
    """
    c, basis = draw(5, 1, 8, 1, 4), orthonormal_rows(draw(6, 1, 4, 4))
    out = attended(0 * c, c, basis, np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32))
    expected = (c[0, :4].mean(0) + c[0, 4]) / 5
    np.testing.assert_allclose(out[0, 4], expected, atol=1e-6)


def test_the_memory_is_constant_within_a_block():
    """Where nothing is near, equal queries of a block get equal results."""
    c = draw(12, 1, 12, 1, 4)
    rho = np.full((1, 4), -1e9, np.float32)
    basis, beta = orthonormal_rows(draw(13, 1, 4, 4)), np.zeros((1, 4), np.float32)
    out = attended(0 * c + 1, c, basis, rho, beta)[0, 4:].reshape(2, 4, 4)
    np.testing.assert_allclose(out, out[:, :1].repeat(4, 1), atol=1e-7)
    assert np.abs(out[0] - out[1]).max() > 0.01
