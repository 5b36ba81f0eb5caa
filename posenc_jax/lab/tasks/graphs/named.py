"""Graphs with names, among them pairs that colour refinement (1-WL) cannot tell apart."""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Bool, Int, Shaped

from posenc_jax.protocol.errors import check_choice

Graph = Bool[np.ndarray, 'n n']


def from_edges(n: int, edges: Iterable[tuple[int, int]]) -> Graph:
    """The adjacency of n nodes with these edges; ValueError for an edge that joins a node to
    itself, or one with a node outside 0 .. n - 1.
    """
    adjacency = np.zeros((n, n), bool)
    for u, v in edges:
        if u == v or not (0 <= u < n and 0 <= v < n):
            raise ValueError(f'an edge joins two different nodes of 0 .. {n - 1}, got ({u}, {v})')
        adjacency[u, v] = adjacency[v, u] = True
    return adjacency


def disjoint(*graphs: Shaped[np.ndarray, '_ _']) -> Graph:
    """All graphs side by side, with no edge between them."""
    ends = np.cumsum([0, *map(len, graphs)])
    joined = np.zeros((ends[-1], ends[-1]), bool)
    for begin, end, graph in zip(ends, ends[1:], graphs):
        joined[begin:end, begin:end] = graph
    return joined


def complete(n: int) -> Graph:
    """K_n: all pairs of n nodes are joined."""
    return ~np.eye(n, dtype=bool)


def circulant(n: int, steps: tuple[int, ...] = (1,)) -> Graph:
    """Nodes on a circle, each joined to those at these distances, in 1 .. n / 2, along it. `(1,)`
    is the cycle, and `(1, R)` the circular skip link graph CSL(n, R).
    """
    if wrong := [step for step in steps if not 1 <= step <= n // 2]:
        raise ValueError(f'on a circle of {n} nodes distances are 1 .. {n // 2}, got {wrong[0]}')
    return from_edges(n, ((i, (i + step) % n) for i in range(n) for step in steps))


def rook(side: int = 4) -> Graph:
    """Squares of a board, joined if they share a row or a column."""
    row, column = np.divmod(np.arange(side * side), side)
    return ((row[:, None] == row) | (column[:, None] == column)) & complete(side * side)


def shrikhande() -> Graph:
    """The points of a 4 x 4 torus, joined if they differ by (1, 0), (0, 1) or (1, 1)."""
    shifts = ((1, 0), (0, 1), (1, 1))
    return from_edges(
        16,
        (
            (4 * x + y, 4 * ((x + dx) % 4) + (y + dy) % 4)
            for x in range(4)
            for y in range(4)
            for dx, dy in shifts
        ),
    )


def decalin() -> Graph:
    """The carbon atoms of decalin: two hexagons that share an edge."""
    return circulant(10) | from_edges(10, [(0, 5)])


def bicyclopentyl() -> Graph:
    """The carbon atoms of bicyclopentyl: two pentagons, joined by an edge."""
    return disjoint(circulant(5), circulant(5)) | from_edges(10, [(0, 5)])


def _prism() -> Graph:
    return disjoint(complete(3), complete(3)) | from_edges(6, [(0, 3), (1, 4), (2, 5)])


# Colour refinement is blind to all of them; to the first, its form for pairs of nodes is too.
BLIND_PAIRS: dict[str, Callable[[], tuple[Graph, Graph]]] = {
    'rook_shrikhande': lambda: (rook(), shrikhande()),
    'triangles_hexagon': lambda: (disjoint(complete(3), complete(3)), circulant(6)),
    'decalin_bicyclopentyl': lambda: (decalin(), bicyclopentyl()),
    'prism_bipartite': lambda: (_prism(), circulant(6, (1, 3))),
    'squares_octagon': lambda: (disjoint(circulant(4), circulant(4)), circulant(8)),
    'skip_links': lambda: (circulant(11, (1, 2)), circulant(11, (1, 3))),
}


def blind_pair(name: str) -> tuple[Graph, Graph]:
    """Two graphs of `BLIND_PAIRS` that are not isomorphic, although colour refinement gives them
    the same colours; SpecError for another name.
    """
    return BLIND_PAIRS[check_choice('blind pair', name, BLIND_PAIRS)]()


def relabelled(
    rng: np.random.Generator, adjacency: Shaped[np.ndarray, 'n n']
) -> Shaped[np.ndarray, 'n n']:
    """The same graph with its nodes in a random order."""
    order = rng.permutation(len(adjacency))
    return adjacency[np.ix_(order, order)]


def refined_colours(adjacency: Shaped[np.ndarray, 'n n']) -> Int[np.ndarray, 'n']:
    """The colours of colour refinement (1-WL) when they have settled: at first all nodes have one
    colour; then two nodes keep one as long as their neighbours have the same colours.
    """
    colours = np.zeros(len(adjacency), np.int64)
    near = [np.flatnonzero(row) for row in np.asarray(adjacency)]
    while True:
        seen = [(own, *sorted(colours[around])) for own, around in zip(colours.tolist(), near)]
        names = {name: i for i, name in enumerate(sorted(set(seen)))}
        new = np.array([names[name] for name in seen], np.int64)
        if new.max() == colours.max():
            return new
        colours = new


def same_colours(one: Shaped[np.ndarray, 'n n'], other: Shaped[np.ndarray, 'm m']) -> bool:
    """Whether colour refinement cannot tell two graphs apart."""
    colours = refined_colours(disjoint(one, other)).tolist()
    return sorted(colours[: len(one)]) == sorted(colours[len(one) :])
