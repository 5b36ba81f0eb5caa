"""Shortest paths of a graph: the fixed part of the biases of Graphormer."""

import dataclasses

import numpy as np
from jaxtyping import Int, Shaped

from posenc_jax.features.graphs.encoder import Features, GraphEncoder
from posenc_jax.methods.graphormer import GRAPH_TOKEN, UNREACHABLE
from posenc_jax.protocol.registry import Card, register

_FAR = np.iinfo(np.int64).max // 4


def graphormer_shortest_paths(
    adjacency: Shaped[np.ndarray, 'n n'],
) -> tuple[Int[np.ndarray, 'n n'], Int[np.ndarray, 'n n']]:
    """Distances d(i, j), -1 where there is no path, and the node k at which one shortest path from
    i to j is cut in two, -1 where the path is an edge or empty or there is none.

    They are those of Floyd and Warshall: k runs over the nodes in their order, and a path through k
    replaces another one only if it is shorter. So among the shortest paths the order of the nodes
    decides, and a relabelled graph may have others.

    Example:
      >>> square = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
      >>> distance, between = graphormer_shortest_paths(square)
      >>> distance[0].tolist(), between[0].tolist()
      ([0, 1, 2, 1], [-1, -1, 1, -1])
    """
    n = len(adjacency)
    distance = np.where(np.asarray(adjacency) > 0, 1, _FAR)
    np.fill_diagonal(distance, 0)
    between = np.full((n, n), -1)
    for k in range(n):
        through = distance[:, k, None] + distance[None, k]
        shorter = through < distance
        distance = np.where(shorter, through, distance)
        between[shorter] = k
    return np.where(distance < _FAR, distance, UNREACHABLE), between


def graphormer_path_edges(
    adjacency: Shaped[np.ndarray, 'n n'], types: Int[np.ndarray, '...'], hops: int
) -> Int[np.ndarray, 'n n hops C_or_1']:
    """The types of the first edges of the path from i to j that `graphormer_shortest_paths` finds,
    of `hops` at most; -1 behind its end.

    Args:
      adjacency: which nodes are joined.
      types: of every edge (i, j), 0, 1, ..., in one column or in C of them.
      hops: how many edges of a path are kept.

    Raises:
      ValueError: types of another shape, fractional ones, or negative ones of an edge.
    """
    n, types = len(adjacency), np.asarray(types)
    if types.shape[:2] != (n, n) or types.ndim not in (2, 3):
        raise ValueError(f'edge types are [{n}, {n}] or [{n}, {n}, C], got {types.shape}')
    if not np.issubdtype(types.dtype, np.integer):
        raise ValueError(f'edge types are integers, got {types.dtype}')
    types = types.reshape(n, n, -1)
    if (least := types[np.asarray(adjacency) > 0].min(initial=0)) < 0:
        raise ValueError(f'the type of an edge is 0, 1, ..., got {least}')
    distance, between = graphormer_shortest_paths(adjacency)
    found = np.full((n, n, hops, types.shape[-1]), -1)
    found[distance == 1, 0] = types[distance == 1]
    places = np.arange(hops)
    for length in range(2, distance.max() + 1):  # a path is made of two shorter ones
        i, j = np.nonzero(distance == length)
        k = between[i, j]
        own = distance[i, k, None]  # edges of the first of them
        first, second = found[i, k], found[k, j]
        behind = np.take_along_axis(second, np.maximum(places - own, 0)[..., None], axis=1)
        found[i, j] = np.where((places < own)[..., None], first, behind)
    return found


def graphormer_with_token(distance: Int[np.ndarray, 'n n']) -> Int[np.ndarray, 'm m']:
    """The distances behind a token in front that stands for the whole graph; its pairs have -2.

    Example:
      >>> graphormer_with_token(np.array([[0, 1], [1, 0]])).tolist()
      [[-2, -2, -2], [-2, 0, 1], [-2, 1, 0]]
    """
    return np.pad(distance, ((1, 0), (1, 0)), constant_values=GRAPH_TOKEN)


class _Pairs(GraphEncoder):
    """An encoder of pairs alone."""

    @property
    def width(self):
        return 0

    def compute(self, adjacency, rng, draw):
        return np.zeros((len(adjacency), 0))


@register(
    'graphormer_spatial',
    kind='graph',
    card=Card(name='Graphormer', example='graphormer_spatial()', share='model'),
)
@dataclasses.dataclass(frozen=True)
class GraphormerDistances(_Pairs):
    """The distances of all pairs of nodes, for the encoding of the same name.

    `d(i, j)`, the number of edges of a shortest path, and -1 without a path, is the feature
    'graph_distance'. Nodes get no features. Differs from the paper: there is no token for the whole
    graph, unless a caller adds one, see `graphormer_with_token`.

    Reference: Ying et al., arXiv 2106.05234.
    """

    def compute_pairs(self, adjacency):
        return {'graph_distance': graphormer_shortest_paths(adjacency)[0]}


@register(
    'graphormer_edge',
    kind='graph',
    card=Card(
        name='Graphormer, edges',
        example='graphormer_edge(hops=3)',
        use_when=('You have graphs with features of edges and use the encoding of the same name.'),
        share='model',
    ),
)
@dataclasses.dataclass(frozen=True)
class GraphormerPaths(_Pairs):
    """The edges of a shortest path between every two nodes, for the encoding of the same name.

    `[e(p_0, p_1), ..., e(p_(m-1), p_m)]`, `i = p_0, ..., p_m = j`, cut after `hops` edges and
    filled up with -1, is the feature 'graph_path'. All edges have the type 0, since tasks have
    graphs without labels; `graphormer_path_edges` takes types. Nodes get no features. Among several
    shortest paths the order of the nodes decides (`graphormer_shortest_paths`). Differs from the
    paper: nothing else.

    Args:
      hops: how many edges of a path are read.

    Reference: Ying et al., arXiv 2106.05234.
    """

    hops: Features = 5

    def compute_pairs(self, adjacency):
        types = np.zeros(adjacency.shape, np.int64)
        return {'graph_path': graphormer_path_edges(adjacency, types, self.hops)}
