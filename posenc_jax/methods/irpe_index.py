"""The buckets of image relative position encoding: offsets of rows and columns become few ids."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

from posenc_jax.protocol.errors import check_choice, check_number
from posenc_jax.protocol.grids import check_grid, on_grid

Method = Literal['product', 'cross', 'euc', 'quant', 'quant_paper']
METHODS = ('product', 'cross', 'euc', 'quant', 'quant_paper')
# Every offset is compared with all thresholds, twice the ratio of them.
LARGEST_RATIO = 64.0


def irpe_thresholds(alpha: float = 1.9, beta: float = 3.8, gamma: float = 15.2) -> np.ndarray:
    """The smallest distance x with `g(x) = 1, 2, ..., int(beta)`, int64; g is that of
    `irpe_piecewise`, evaluated in float64.

    Raises:
      ValueError: not `0 < alpha < beta < gamma`, a beta below 1 or a gamma above 512.
    """
    if not 0 < alpha < beta < gamma:
        raise ValueError(f'irpe needs 0 < alpha < beta < gamma, got {alpha}, {beta} and {gamma}')
    check_number('irpe beta', beta, least=1)
    check_number('irpe gamma', gamma, most=8 * LARGEST_RATIO)
    # From gamma on g is int(beta), its largest value.
    x = np.arange(int(np.ceil(gamma)) + 1, dtype=np.float64)
    far = alpha + (beta - alpha) * np.log(np.maximum(x, alpha) / alpha) / np.log(gamma / alpha)
    g = np.where(x <= alpha, np.round(x), np.minimum(beta, np.round(far))).astype(np.int64)
    return np.searchsorted(g, np.arange(1, int(beta) + 1))


def irpe_piecewise(
    x: Int[Array, '...'], alpha: float = 1.9, beta: float = 3.8, gamma: float = 15.2
) -> Int[Array, '...']:
    """The piecewise index g of a signed distance.

    `g(x) = x` for `|x| <= alpha`, else `sign(x) min(beta, round(alpha + (beta - alpha)
    ln(|x| / alpha) / ln(gamma / alpha)))`, truncated towards zero; halves are rounded to even.

    Raises:
      ValueError: as `irpe_thresholds`.
    """
    return jnp.sign(x) * _count(jnp.abs(x), irpe_thresholds(alpha, beta, gamma))


def irpe_buckets(method: Method = 'product', ratio: float = 1.9) -> int:
    """How many buckets the pairs of two tokens on the grid have; their ids count from 0. With
    'cross' each of the two tables has as many.

    Raises:
      SpecError, ValueError: an unknown method; a ratio outside 0.5 .. 64.
    """
    side = 2 * len(_of_ratio(method, ratio)) + 1
    return side**2 if method == 'product' else side


def irpe_ids(
    q_pos: Int[Array, '#B T 2'],
    k_pos: Int[Array, '#B S 2'],
    method: Method = 'product',
    ratio: float = 1.9,
) -> tuple[Int[Array, '#B T S'], ...]:
    """The bucket b(i, j) of every pair, for each table: two tables for 'cross', else one.

    With (dr, dc) = query minus key, m = int(2 ratio) and g of `irpe_piecewise` for
    alpha, beta, gamma = ratio, 2 ratio, 8 ratio:

    - 'product': `(g(dr) + m) (2 m + 1) + g(dc) + m`;
    - 'cross': `g(dr) + m` and `g(dc) + m`;
    - 'euc': `g(round(sqrt(dr^2 + dc^2))) + m`;
    - 'quant': `g(dr^2 + dc^2) + m`, as in the released code;
    - 'quant_paper': `g(n) + m`, where the distance is the n-th of 0, 1, sqrt 2, 2, sqrt 5, ...

    A pair with a token that is not on the grid (`on_grid`) is in one more bucket, whose id is
    `irpe_buckets(method, ratio)`.

    Raises:
      SpecError, ValueError: as `irpe_buckets`; positions that are not integers [B, L, 2].
    """
    starts = _of_ratio(method, ratio)
    for pos in (q_pos, k_pos):
        check_grid('irpe', pos, whole=True)
    on_q, on_k = on_grid(q_pos), on_grid(k_pos)
    extra = irpe_buckets(method, ratio)

    def inner(q_pos, k_pos, on_q, on_k):
        rows, columns = (q_pos[:, :, None, axis] - k_pos[:, None, :, axis] for axis in (0, 1))
        return tuple(ids.astype(jnp.int32) for ids in _offset_ids(rows, columns, method, starts))

    def outer(q_pos, k_pos, on_q, on_k):
        both = on_q[:, :, None] & on_k[:, None, :]
        return tuple(jnp.where(both, ids, extra) for ids in inner(q_pos, k_pos, on_q, on_k))

    # Most tiles lie on the grid entirely. The branch also keeps XLA from computing the ids anew
    # for every head that reads them.
    return jax.lax.cond(on_q.all() & on_k.all(), inner, outer, q_pos, k_pos, on_q, on_k)


def _offset_ids(rows: Array, columns: Array, method: str, starts: np.ndarray) -> tuple[Array, ...]:
    """The ids of offsets between tokens on the grid."""
    m, side = len(starts), 2 * len(starts) + 1
    if method in ('product', 'cross'):
        rows, columns = (jnp.sign(d) * _count(jnp.abs(d), starts) + m for d in (rows, columns))
        return (rows * side + columns,) if method == 'product' else (rows, columns)
    starts = _of_squares(method, starts)
    reach = int(starts[-1] ** 0.5) + 1  # farther offsets change nothing, and would overflow
    near = lambda d: jnp.clip(d, -reach, reach)
    return (_count(near(rows) ** 2 + near(columns) ** 2, starts) + m,)


def _of_ratio(method: str, ratio: float) -> np.ndarray:
    check_choice('irpe method', method, METHODS)
    check_number('irpe ratio', ratio, least=0.5, most=LARGEST_RATIO)
    return irpe_thresholds(ratio, 2 * ratio, 8 * ratio)


def _count(x: Num[Array, '...'], starts: np.ndarray) -> Int[Array, '...']:
    """How many of the thresholds `x` reaches."""
    count = jnp.zeros(x.shape, jnp.int32)
    for start in starts.tolist():
        count = count + (x >= start)
    return count


def _of_squares(method: str, starts: np.ndarray) -> np.ndarray:
    """The thresholds of the index as thresholds of the squared distance."""
    if method == 'euc':  # round(sqrt(n)) >= x, if and only if n > (x - 1/2)^2
        return starts**2 - starts + 1
    if method == 'quant':
        return starts
    side = np.arange(starts[-1] + 1) ** 2
    return np.unique(side[:, None] + side)[starts]
