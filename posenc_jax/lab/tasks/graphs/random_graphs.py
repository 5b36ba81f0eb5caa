"""Random graphs: regular ones, communities, the same degrees without communities; and triangles."""

import numpy as np
from jaxtyping import Bool, Int, Shaped

from posenc_jax.lab.tasks.graphs.named import relabelled
from posenc_jax.protocol.checks import is_size

_TRIES = 1000


def random_graph(
    rng: np.random.Generator, n: int, probability: float
) -> Bool[np.ndarray, '{n} {n}']:
    """n nodes, of which each pair is joined with this probability; ValueError for n below 1 or a
    probability outside 0 .. 1.
    """
    if not is_size(n):
        raise ValueError(f'random_graph needs at least 1 node, got {n}')
    _check_probability('random_graph probability', probability)
    upper = np.triu(rng.random((n, n)) < probability, 1)
    return upper | upper.T


def random_regular(rng: np.random.Generator, n: int, degree: int) -> Bool[np.ndarray, '{n} {n}']:
    """A graph of n nodes in which every node has this degree. Free ends of edges are joined in
    pairs at random; if the ends that are left cannot be joined, all begins anew. The distribution
    is close to uniform for small degrees (after Steger and Wormald, 1999).

    Raises:
      ValueError: a degree that is not in 0 .. n - 1, or an odd number of ends, n * degree.
    """
    if not is_size(n) or not 0 <= degree < n:
        raise ValueError(f'random_regular needs 0 <= degree < n, got {n} nodes of degree {degree}')
    if n * degree % 2:
        raise ValueError(
            f'{n} nodes of degree {degree} have {n * degree} ends of edges, an odd number; use an '
            f'even number of nodes or degree {degree - 1}'
        )
    for _ in range(_TRIES):
        ends, joined = np.repeat(np.arange(n), degree), np.zeros((n, n), bool)
        while len(ends):
            ends = rng.permutation(ends)
            left = []
            for u, v in ends.reshape(-1, 2).tolist():
                if u == v or joined[u, v]:
                    left += [u, v]
                else:
                    joined[u, v] = joined[v, u] = True
            nodes = np.unique(np.array(left, int))
            free = ~joined[np.ix_(nodes, nodes)] & ~np.eye(len(nodes), dtype=bool)
            if left and not free.any():
                break
            ends = np.array(left, int)
        else:
            return joined
    raise ValueError(f'no graph of {n} nodes of degree {degree} was found in {_TRIES} tries')


def community_graph(
    rng: np.random.Generator, communities: int, size: int, inside: float, between: float
) -> Bool[np.ndarray, 'n n']:
    """`communities` groups of `size` nodes, one behind the other: two nodes of one group are joined
    with the probability `inside`, others with `between`.

    Raises:
      ValueError: no groups or nodes, probabilities outside 0 .. 1.
    """
    if not (is_size(communities) and is_size(size)):
        raise ValueError(
            f'community_graph needs at least 1 group and 1 node, got {communities} and {size}'
        )
    _check_probability('community_graph inside', inside)
    _check_probability('community_graph between', between)
    group = np.repeat(np.arange(communities), size)
    chance = np.where(group[:, None] == group, inside, between)
    upper = np.triu(rng.random(chance.shape) < chance, 1)
    return upper | upper.T


def rewired(
    rng: np.random.Generator, adjacency: Shaped[np.ndarray, 'n n'], swaps: int | None = None
) -> Bool[np.ndarray, 'n n']:
    """A random graph in which every node has the degree that it had: two edges a - b and c - d
    become a - d and c - b, again and again, unless this would join a node to itself or a pair
    twice. So many `swaps` are tried, ten for each edge by default.
    """
    joined = np.array(adjacency, bool)
    edges = np.argwhere(np.triu(joined, 1))
    tries = 10 * len(edges) if swaps is None else swaps
    if len(edges) < 2:
        return joined
    picks, turns = rng.integers(0, len(edges), (tries, 2)), rng.random(tries) < 0.5
    for (i, j), turn in zip(picks.tolist(), turns.tolist()):
        a, b = edges[i]
        c, d = edges[j][::-1] if turn else edges[j]
        if len({a, b, c, d}) < 4 or joined[a, d] or joined[c, b]:
            continue
        for u, v, there in ((a, b, False), (c, d, False), (a, d, True), (c, b, True)):
            joined[u, v] = joined[v, u] = there
        edges[i], edges[j] = (a, d), (c, b)
    return joined


def community_samples(
    rng: np.random.Generator,
    count: int,
    communities: int = 2,
    size: int | Int[np.ndarray, '{count}'] = 8,
    inside: float = 0.6,
    between: float = 0.1,
) -> tuple[list[Bool[np.ndarray, 'n n']], Int[np.ndarray, '{count}']]:
    """Graphs with communities (label 1) and graphs that have the degrees of such a graph and no
    communities (label 0), each with probability 1 / 2, in a random order of their nodes. `size` may
    differ between graphs. Errors are those of `community_graph`.
    """
    labels, graphs = rng.integers(0, 2, count), []
    for label, own in zip(labels, np.broadcast_to(size, count).tolist()):
        graph = community_graph(rng, communities, own, inside, between)
        graphs.append(relabelled(rng, graph if label else rewired(rng, graph)))
    return graphs, labels


def node_triangles(adjacency: Shaped[np.ndarray, 'n n']) -> Int[np.ndarray, 'n']:
    """How many triangles each node is in."""
    a = np.asarray(adjacency).astype(np.int64)
    return ((a @ a) * a).sum(1) // 2


def graph_triangles(adjacency: Shaped[np.ndarray, 'n n']) -> int:
    """How many triangles a graph has."""
    return int(node_triangles(adjacency).sum()) // 3


def _check_probability(what: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f'{what} must lie in 0 .. 1, got {value}')
