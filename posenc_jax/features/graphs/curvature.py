"""Discrete curvatures of the edges of a graph: Ollivier-Ricci by optimal transport, its bounds, and
Forman-Ricci with and without triangles and 4-cycles. On the host, in float64.
"""

import math
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.features.graphs.adjacency import edges_of
from posenc_jax.protocol.errors import check_choice, check_number

Forman = Literal['frc', 'afrc3', 'afrc4']
LARGEST_ASSIGNMENT = 2000  # beyond it the linear program is cheaper


def near_distances(adjacency: Float[np.ndarray, 'n n']) -> Int[np.ndarray, 'n n']:
    """Hops between nodes, 0, 1, 2, and 3 for all that are farther apart.

    The neighbours of two joined nodes are never farther than 3 from each other.
    """
    hops = np.where(adjacency @ adjacency > 0, 2, 3)
    hops[adjacency > 0] = 1
    np.fill_diagonal(hops, 0)
    return hops


def transport_by_assignment(
    cost: Float[np.ndarray, 'a b'], rows: Int[np.ndarray, 'a'], columns: Int[np.ndarray, 'b']
) -> float:
    """The cost of moving whole pieces, `rows` of them at each row, so that `columns` are at each
    column: one assignment problem, exact.

    Raises:
      ValueError: another number of pieces at the rows than at the columns.
    """
    from scipy.optimize import linear_sum_assignment

    if rows.sum() != columns.sum():
        raise ValueError(f'the rows have {rows.sum()} pieces, the columns {columns.sum()}')
    pieces = cost.repeat(rows, axis=0).repeat(columns, axis=1)
    return float(pieces[linear_sum_assignment(pieces)].sum())


def transport_by_program(
    cost: Float[np.ndarray, 'a b'], rows: Float[np.ndarray, 'a'], columns: Float[np.ndarray, 'b']
) -> float:
    """The cost of moving the masses `rows` to the masses `columns`, by a linear program.

    Raises:
      ValueError: another mass of all rows than of all columns.
      RuntimeError: the solver has found no solution; its message follows.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csc_array

    a, b = cost.shape
    if not abs(rows.sum() - columns.sum()) <= 1e-9:
        raise ValueError(f'the rows have mass {rows.sum()}, the columns {columns.sum()}')
    # What moves from row i to column j leaves i and arrives at j.
    i, j = np.divmod(np.arange(a * b), b)
    ends = np.stack([i, a + j], axis=1).ravel()
    begins = np.arange(0, 2 * a * b + 1, 2)
    moves = csc_array((np.ones(2 * a * b), ends, begins), shape=(a + b, a * b))
    found = linprog(cost.ravel(), A_eq=moves, b_eq=np.concatenate([rows, columns]), method='highs')
    if found.status != 0:
        raise RuntimeError(f'no optimal transport was found: {found.message}')
    return float(found.fun)


def ollivier_ricci(
    adjacency: Float[np.ndarray, 'n n'], alpha: float = 0.0
) -> Float[np.ndarray, 'E']:
    """`k(u, v) = 1 - W_1(mu_u, mu_v)` of every edge, exactly, in the order of `edges_of`.

    mu_u has mass `alpha` at u and `(1 - alpha) / d_u` at each neighbour; the cost is the number of
    hops. For alpha = 0 both masses are cut into lcm(d_u, d_v) equal pieces and it is one assignment
    problem an edge. Where these are more than 2000, and for other alpha, it is a linear program.

    Args:
      alpha: the laziness, 0 <= alpha < 1.

    Raises:
      ValueError: an alpha outside these bounds.
    """
    check_number('Ollivier-Ricci alpha', alpha, least=0)
    if alpha >= 1:
        raise ValueError(f'Ollivier-Ricci alpha must be below 1, got {alpha}')
    hops, near = near_distances(adjacency), adjacency > 0
    neighbours = [np.flatnonzero(row) for row in near]
    found = []
    for u, v in edges_of(adjacency):
        at_u, at_v = neighbours[u], neighbours[v]
        a, b = len(at_u), len(at_v)
        pieces = math.lcm(a, b)
        if alpha == 0 and pieces <= LARGEST_ASSIGNMENT:
            rows, columns = np.full(a, pieces // a), np.full(b, pieces // b)
            # What both have at a common neighbour stays there.
            stays = min(pieces // a, pieces // b)
            rows -= stays * near[v, at_u]
            columns -= stays * near[u, at_v]
            cost = hops[np.ix_(at_u, at_v)].astype(np.float64)
            found.append(1 - transport_by_assignment(cost, rows, columns) / pieces)
            continue
        rows, columns = np.full(a + 1, (1 - alpha) / a), np.full(b + 1, (1 - alpha) / b)
        rows[-1] = columns[-1] = alpha
        cost = hops[np.ix_(np.append(at_u, u), np.append(at_v, v))].astype(np.float64)
        found.append(1 - transport_by_program(cost, rows, columns))
    return np.array(found, np.float64)


def _of_edges(adjacency):
    """The degrees of u and of v and the triangles of every edge."""
    u, v = edges_of(adjacency).T
    degrees = adjacency.sum(1)
    return degrees[u], degrees[v], (adjacency @ adjacency)[u, v]


def ollivier_bounds(
    adjacency: Float[np.ndarray, 'n n'],
) -> tuple[Float[np.ndarray, 'E'], Float[np.ndarray, 'E']]:
    """A lower and an upper bound of `ollivier_ricci` for alpha = 0, from degrees and triangles.

    `-(1 - 1/d_u - 1/d_v - t/min)_+ - (1 - 1/d_u - 1/d_v - t/max)_+ + t/max` and `t/max`, for t
    triangles on the edge, and the smaller and the larger degree.
    """
    of_u, of_v, triangles = _of_edges(adjacency)
    small, large = np.minimum(of_u, of_v), np.maximum(of_u, of_v)
    free = 1 - 1 / of_u - 1 / of_v
    upper = triangles / large
    lower = upper - np.maximum(free - triangles / small, 0) - np.maximum(free - upper, 0)
    return lower, upper


def forman_ricci(
    adjacency: Float[np.ndarray, 'n n'], kind: Forman = 'frc'
) -> Float[np.ndarray, 'E']:
    """`4 - d_u - d_v` ('frc'), `+ 3 t` for t triangles on the edge ('afrc3'), and `+ 2 q` for q
    4-cycles u - w - x - v ('afrc4'), in the order of `edges_of`.

    Raises:
      SpecError: another kind.
    """
    check_choice('Forman-Ricci kind', kind, get_args(Forman))
    of_u, of_v, triangles = _of_edges(adjacency)
    found = 4 - of_u - of_v
    if kind == 'frc':
        return found
    found = found + 3 * triangles
    if kind == 'afrc3':
        return found
    u, v = edges_of(adjacency).T
    # Of the walks u - w - x - v, those with w = v or x = u are no cycles.
    walks = (adjacency @ adjacency @ adjacency)[u, v]
    return found + 2 * (walks - of_u - of_v + 1)
