"""Adjacency matrices of undirected graphs: their check, their edges, and operators made of them.

All of this runs on the host, in float64.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Shaped

from posenc_jax.protocol.errors import check_choice

Operator = Literal['gcn', 'adj', 'sym', 'rw', 'lap']


def check_adjacency(adjacency: Shaped[np.ndarray, 'n n']) -> Float[np.ndarray, 'n n']:
    """The adjacency of an undirected graph without loops, as float64.

    Args:
      adjacency: 1 (or True) where two nodes are joined, else 0.

    Raises:
      ValueError: a matrix that is not square, has no rows, or is not symmetric; an entry that is
        not a number, or neither 0 nor 1; a node that is joined to itself. The message names the
        first such entry.
    """
    found = np.asarray(adjacency)
    if found.ndim != 2 or found.shape[0] != found.shape[1]:
        raise ValueError(f'an adjacency is a square matrix [n, n], got an array of {found.shape}')
    if not len(found):
        raise ValueError('the graph is empty, n = 0; expected at least one node')
    if found.dtype.kind not in 'biuf':
        raise ValueError(f'an adjacency has entries 0 and 1, got an array of {found.dtype}')

    def refuse(wrong, why):
        for i, j in np.argwhere(wrong)[:1].tolist():
            raise ValueError(f'adjacency[{i}, {j}] is {found[i, j]}{why(i, j)}')

    refuse(~((found == 0) | (found == 1)), lambda i, j: ', expected 0 or 1')
    refuse(
        np.diag(np.diag(found) != 0),
        lambda i, j: f': node {i} is joined to itself; set the diagonal to 0',
    )
    refuse(
        found != found.T,
        lambda i, j: (
            f', but adjacency[{j}, {i}] is {found[j, i]}; expected a symmetric matrix, '
            'e.g. np.maximum(a, a.T)'
        ),
    )
    return found.astype(np.float64)


def edges_of(adjacency: Shaped[np.ndarray, 'n n']) -> Int[np.ndarray, 'E 2']:
    """The edges (u, v) of an undirected graph, u < v, in the order of their nodes."""
    return np.argwhere(np.triu(np.asarray(adjacency), 1))


def inverse_power(degrees: Float[np.ndarray, 'n'], power: float) -> Float[np.ndarray, 'n']:
    """`d^-power`, and 0 for isolated nodes, d = 0."""
    return np.where(degrees > 0, np.maximum(degrees, 1.0) ** -power, 0.0)


def graph_operator(
    adjacency: Float[np.ndarray, 'n n'], operator: Operator = 'gcn'
) -> Float[np.ndarray, 'n n']:
    """The matrix S of a graph: 'gcn' `D~^-1/2 (A + I) D~^-1/2` with D~ = D + I, 'adj' A, 'sym'
    `D^-1/2 A D^-1/2`, 'rw' `D^-1 A`, 'lap' `I - D^-1/2 A D^-1/2`.

    `D^-1/2` and `D^-1` are 0 for isolated nodes, so their row is 0 in 'sym' and 'rw'.

    Raises:
      SpecError: an unknown operator.
    """
    check_choice('graph operator', operator, get_args(Operator))
    a = adjacency + np.eye(len(adjacency)) if operator == 'gcn' else adjacency
    degrees = a.sum(1)
    if operator == 'adj':
        return a
    if operator == 'rw':
        return inverse_power(degrees, 1.0)[:, None] * a
    half = inverse_power(degrees, 0.5)
    symmetric = half[:, None] * a * half
    return np.eye(len(a)) - symmetric if operator == 'lap' else symmetric
