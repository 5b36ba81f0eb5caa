"""Graphormer: distances and paths by hand, ties of shortest paths, the biases, and what they do not
tell apart.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.features.graphs import make_graph_features
from posenc_jax.features.graphs.graphormer import (
    graphormer_path_edges,
    graphormer_shortest_paths,
    graphormer_with_token,
)
from posenc_jax.lab.cli.equal_tokens import Probe, by_distance
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.model.inputs import tokens_of
from posenc_jax.lab.tasks.graphs import Triangles, random_graph
from posenc_jax.lab.tasks.graphs.named import circulant, complete, disjoint, from_edges
from posenc_jax.methods.graphormer import graphormer_edge, graphormer_spatial
from posenc_jax.protocol.composite import parts_of
from tests.golden_files import golden, golden_suite
from tests.refusals import refused

SPATIAL, EDGE = golden('graphormer_spatial')['values'], golden('graphormer_edge')['values']
PATH = from_edges(3, [(0, 1), (1, 2)])
RNG = np.random.default_rng(0)
GRAPH = disjoint(random_graph(RNG, 9, 0.25), complete(2))


def made(spec, **sizes):
    sizes = dict(heads=2, kv_heads=2, head_dim=4, model_dim=2) | sizes
    return pj.make(spec, rngs=nnx.Rngs(0), **sizes)


def bias_of(encoding, **feats):
    """What it adds to logits, by the doors: [N, n, n]."""
    feats = {name: jnp.asarray(a)[None, :, None] for name, a in feats.items()}
    tok = pj.Tokens.of(length=next(iter(feats.values())).shape[1]).with_feats(**feats)
    zeros = jnp.zeros((1, tok.length, 2, 4))
    q, k, _, tq, tk = encoding.project(zeros, zeros, zeros, tok, tok)
    q, k = (jnp.swapaxes(a, 1, 2) for a in (q, k))
    return pair_logits(encoding, q, k, tq, tk)[0][0]


def spatial_bias():
    encoding = made('graphormer_spatial(distances=2)')
    encoding.distances[...] = jnp.array(SPATIAL['table'])
    return bias_of(encoding, graph_distance=jnp.array(SPATIAL['distance']))


def dodecahedron_counts():
    edges = [(i, (i + 1) % 10) for i in range(10)] + [
        (10 + i, 10 + (i + 2) % 10) for i in range(10)
    ]
    graph = from_edges(20, [*edges, *((i, 10 + i) for i in range(10))])
    return np.bincount(graphormer_shortest_paths(graph)[0][7])


test_golden_distances = golden_suite('graphormer_spatial') | {
    'edge': lambda: graphormer_shortest_paths(complete(2))[0],
    'apart': lambda: graphormer_shortest_paths(disjoint(PATH, complete(1)))[0],
    'counts': dodecahedron_counts,
    'bias': spatial_bias,
}


def edge_bias():
    encoding = made('graphormer_edge(hops=2, types=2)')
    encoding.edges[...], encoding.hops[...] = jnp.array(EDGE['edges']), jnp.array(EDGE['hops'])
    return bias_of(encoding, graph_path=graphormer_path_edges(PATH, np.array(EDGE['types']), 2))


test_golden_paths = golden_suite('graphormer_edge') | {
    'paths': lambda: graphormer_path_edges(PATH, np.array(EDGE['types']), 2),
    'bias': edge_bias,
}


def degree_vectors():
    values = golden('graphormer_degree')['values']
    encoding = made('graphormer_degree(degrees=4)')
    encoding.into[...], encoding.out_of[...] = (
        jnp.array(values[name]) for name in ('into', 'out_of')
    )
    star = disjoint(from_edges(4, [(0, 1), (0, 2), (0, 3)]), complete(1))
    tok = pj.Tokens.of(length=5).with_feats(adjacency=star[None, :, None].astype(np.float32))
    return encoding.embed(jnp.zeros((1, 5, 2)), tok)[0]


test_golden_degrees = golden_suite('graphormer_degree', {'added': degree_vectors})


def by_breadth_first(graph):
    """Distances by search from every node."""
    found = np.full(graph.shape, -1)
    for start in range(len(graph)):
        front, steps = {start}, 0
        while front:
            found[start, list(front)] = steps
            near = {int(j) for i in front for j in np.flatnonzero(graph[i])}
            front, steps = {j for j in near if found[start, j] < 0}, steps + 1
    return found


def all_shortest(graph, distance, i, j):
    """All shortest paths from i to j, as lists of nodes."""
    if i == j:
        return [[i]]
    near = [n for n in np.flatnonzero(graph[i]).tolist() if distance[n, j] == distance[i, j] - 1]
    return [[i, *rest] for n in near for rest in all_shortest(graph, distance, n, j)]


def nodes_between(between, i, j):
    """The nodes of the path that is cut at `between`, by recursion, as the authors' code has it."""
    k = int(between[i, j])
    return [] if k < 0 else [*nodes_between(between, i, k), k, *nodes_between(between, k, j)]


def test_distances_and_paths_of_a_random_graph():
    """Every edge has a type of its own, so the types say which path was taken."""
    n = len(GRAPH)
    distance, between = graphormer_shortest_paths(GRAPH)
    np.testing.assert_array_equal(distance, by_breadth_first(GRAPH))
    assert distance.min() == -1 and distance.max() > 2
    types = np.arange(n * n).reshape(n, n)
    whole, cut = (graphormer_path_edges(GRAPH, types, hops)[..., 0] for hops in (n, 2))
    np.testing.assert_array_equal(cut, whole[..., :2])
    for i, j in itertools.product(range(n), repeat=2):
        length = max(int(distance[i, j]), 0)
        assert (whole[i, j, :length] >= 0).all() and (whole[i, j, length:] == -1).all()
        if length:
            nodes = [i, *(whole[i, j, :length] % n).tolist()]
            assert nodes == [i, *nodes_between(between, i, j), j]
            assert nodes in all_shortest(GRAPH, distance, i, j)


def test_among_shortest_paths_the_order_of_the_nodes_decides():
    """In a square both ways are short; the path through the node that comes first is kept."""
    square = circulant(4)
    types = np.arange(16).reshape(4, 4)
    for order, middle in (([0, 1, 2, 3], 1), ([0, 3, 2, 1], 3)):
        graph, own = square[np.ix_(order, order)], types[np.ix_(order, order)]
        first = graphormer_path_edges(graph, own, 2)[0, 2, :, 0]
        assert first.tolist() == [types[0, middle], types[middle, 2]]
        assert graphormer_shortest_paths(graph)[1][0, 2] == 1


def test_the_edge_term_is_that_of_a_loop_over_pairs():
    types = RNG.integers(0, 3, (11, 11, 2))  # two columns, which are averaged
    path = graphormer_path_edges(GRAPH, types, 3)
    encoding = made('graphormer_edge(hops=3, types=3)')
    e, w = (np.asarray(a[...], np.float64) for a in (encoding.edges, encoding.hops))
    expected = np.zeros((2, 11, 11))
    for i, j in itertools.product(range(11), repeat=2):
        edges = [edge for edge in path[i, j] if edge[0] >= 0]
        for t, edge in enumerate(edges):
            of_edge = np.mean([e[kind] for kind in edge], axis=0)
            for h in range(2):
                expected[h, i, j] += sum(of_edge[g] * w[t, g, h] for g in range(2)) / len(edges)
    np.testing.assert_allclose(bias_of(encoding, graph_path=path), expected, atol=1e-7)
    rows = graphormer_edge(encoding.edges[...], encoding.hops[...], jnp.asarray(path)[None])
    assert rows.shape == (1, 11, 2, 11)


def test_a_table_of_the_distance_one_is_the_adjacency():
    encoding = made('graphormer_spatial(distances=6)')
    encoding.distances[...] = jnp.zeros((2, 8)).at[:, 1].set(1.0)
    found = bias_of(encoding, graph_distance=graphormer_shortest_paths(GRAPH)[0].astype(np.int32))
    np.testing.assert_array_equal(found, np.stack([GRAPH, GRAPH]))


def test_relabelled_nodes_have_the_relabelled_bias():
    """That of distances, and that of edges where all have one type."""
    order = RNG.permutation(11)
    spatial, edge = made('graphormer_spatial(distances=6)'), made('graphormer_edge(hops=3)')
    encoder = make_graph_features('graphormer_spatial() | graphormer_edge(hops=3)')
    for encoding, name in ((spatial, 'graph_distance'), (edge, 'graph_path')):
        bias = lambda graph: np.asarray(bias_of(encoding, **{name: encoder.pairs(graph)[name]}))
        plain, turned = bias(GRAPH), bias(GRAPH[np.ix_(order, order)])
        np.testing.assert_array_equal(turned, plain[:, order][:, :, order])


def test_a_token_of_the_graph_stands_in_front():
    distance = graphormer_with_token(graphormer_shortest_paths(GRAPH)[0])
    table = jnp.arange(8.0)[None]
    found = graphormer_spatial(table, jnp.asarray(distance)[None])[0, :, 0]
    assert (found[0] == 7).all() and (found[:, 0] == 7).all()
    np.testing.assert_array_equal(found[1:, 1:] == 6, distance[1:, 1:] == -1)
    assert jnp.isnan(graphormer_spatial(table, jnp.array([[[-3]]]))).all()


def test_a_model_reads_all_of_it():
    spec = 'graphormer_spatial() | graphormer_edge(hops=2)'
    batch = Triangles(features=spec).sample(np.random.default_rng(0), 2, (6, 8))
    assert batch['vectors'].shape == (2, 8, 1) and batch['graph_path'].shape == (2, 8, 8, 2, 1)
    assert batch['graph_distance'].dtype == np.int32
    cfg = TransformerConfig(
        vocab_size=0, channels=1, output_size=2, train_len=8, layers=2, width=8, heads=2,
        kind='encoder', pool='', features=spec, encoding=f'graphormer_degree() | {spec}',
    )  # fmt: skip
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    assert model(batch['vectors'], tokens_of(batch)).shape == (2, 8, 2)
    with pytest.raises(ValueError, match="reads the feature '.*' of a graph, and these tokens"):
        model(batch['vectors'])


def test_the_catalogue_draws_the_nodes_of_a_path():
    probe = Probe(heads=2, head_dim=4, train_len=6)
    encoding = probe.make('graphormer_spatial(distances=4)')
    table = np.asarray(parts_of(encoding)[0].distances[...])[:, [0, 1, 2, 3, 4, 4]]
    np.testing.assert_allclose(by_distance(encoding, 6, probe), table - table[:, :1], atol=1e-6)
    for spec in ('graphormer_edge(hops=2)', 'graphormer_degree(degrees=4)'):
        assert np.isfinite(by_distance(probe.make(spec), 6, probe)).all()


def test_rows_of_padding_have_no_degree():
    encoding = made('graphormer_degree(degrees=3)')
    edges = np.zeros((5, 5), np.float32)
    edges[:3, :3], edges[3:] = PATH, 1  # five neighbours
    valid = jnp.arange(5)[None] < 3
    tok = pj.Tokens.of(valid=valid).with_feats(adjacency=edges[None, :, None])
    found = encoding.embed(jnp.zeros((1, 5, 2)), tok)
    alone = pj.Tokens.of(length=3).with_feats(adjacency=PATH[None, :, None].astype(np.float32))
    np.testing.assert_array_equal(found[:, :3], encoding.embed(jnp.zeros((1, 3, 2)), alone))
    assert not found[:, 3:].any()


SHAPE = 'must be integers of'
test_wrong_values_are_refused = refused() | {
    f"graphormer_spatial: the feature 'graph_distance' {SHAPE} 3 axes, got float32": lambda: (
        bias_of(made('graphormer_spatial()'), graph_distance=np.zeros((3, 3), np.float32))
    ),
    f"graphormer_edge: the feature 'graph_path' {SHAPE} 5 axes": lambda: bias_of(
        made('graphormer_edge()'), graph_path=np.zeros((3, 3, 5), np.int32)
    ),
    'reads paths of hops=5 edges, got 4': lambda: bias_of(
        made('graphormer_edge()'), graph_path=np.zeros((3, 3, 4, 1), np.int32)
    ),
    r'the type of an edge is 3, not in 0 \.\. 1; use types=4': lambda: bias_of(
        made('graphormer_edge(hops=1, types=2)'), graph_path=np.full((3, 3, 1, 1), 3)
    ),
    r'a degree is 3, not in 0 \.\. 2; use degrees=4': lambda: made(
        'graphormer_degree(degrees=3)'
    ).embed(
        jnp.zeros((1, 4, 2)),
        pj.Tokens.of(length=4).with_feats(adjacency=complete(4)[None, :, None].astype(np.float32)),
    ),
    r'edge types are \[3, 3\] or \[3, 3, C\], got \(2, 3\)': lambda: graphormer_path_edges(
        PATH, np.zeros((2, 3), int), 2
    ),
    'edge types are integers, got float64': lambda: graphormer_path_edges(
        PATH, np.full((3, 3), 0.5), 2
    ),
    'the type of an edge is 0, 1, ..., got -1': lambda: graphormer_path_edges(
        PATH, -np.ones((3, 3), int), 2
    ),
    "graphormer_degree reads the feature 'adjacency' of a graph": lambda: made(
        'graphormer_degree()'
    ).embed(jnp.zeros((1, 4, 2)), pj.Tokens.of(length=4)),
}


def test_what_is_in_no_table_and_traced_is_nan():
    edge = made('graphormer_edge(hops=1, types=2)')
    path = jnp.zeros((3, 3, 1, 1), int).at[0, 1].set(5)
    found = jax.jit(lambda path: bias_of(edge, graph_path=path))(path)
    np.testing.assert_array_equal(jnp.isnan(found[0]), np.eye(3, k=1) * [[1], [0], [0]] > 0)
