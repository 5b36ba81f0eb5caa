"""Contract tests of encoders of graphs: they run on the example of every Card of this kind that
spec strings build.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.features.graphs import (
    GraphEncoder,
    JoinedGraphFeatures,
    feature_scale,
    make_graph_features,
)
from posenc_jax.features.graphs.adjacency import check_adjacency, edges_of
from posenc_jax.features.graphs.encoder import PAIRS
from posenc_jax.lab.tasks.graphs import random_graph
from posenc_jax.lab.tasks.graphs.named import circulant, complete, disjoint, from_edges
from posenc_jax.language.spec import parse
from posenc_jax.protocol.registry import entries

ENTRIES = [entry for entry in entries('graph') if entry.in_specs]
every_encoder = pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry.key)
RNG = np.random.default_rng(5)
RANDOM = random_graph(RNG, 9, 0.4)
GRAPHS = {
    'one_node': np.zeros((1, 1)),
    'one_edge': complete(2),
    'no_edges': np.zeros((4, 4)),
    'isolated_node': disjoint(complete(1), from_edges(4, [(0, 1), (1, 2), (2, 0), (2, 3)])),
    'two_components': disjoint(circulant(5), from_edges(4, [(0, 1), (1, 2), (2, 3)])),
    'random': RANDOM,
}
# Options of the encoders that the example does not use.
OPTIONS = {
    'lcp': ("lcp(curvature='afrc4', alt=True)", "lcp(curvature='orc_approx')", 'lcp(alpha=0.3)'),
    'rfp': ("rfp(features=3, steps=2, normalise='l2', operator='rw')",),
    'lap_pe': ("lap_pe(vectors=2, signs='canonical')",),
    'pearl': ('pearl(signals=9, powers=2, basis=True)',),
}
OF_EIGENVECTORS = ('lap_pe', 'signnet')
TURNED = (*OF_EIGENVECTORS, 'pearl')  # a permutation of the nodes changes the columns too


class Drawn:
    """A source of normal numbers that a test has drawn, with a row for every node."""

    def __init__(self, rows):
        self.rows = rows

    def standard_normal(self, shape):
        assert shape[0] == len(self.rows)
        return self.rows[:, : shape[1]]

    def choice(self, values, size):
        return np.full(size, values[0])


def specs(entry):
    return [entry.card.example, *OPTIONS.get(entry.key, ())]


def invariant(entry, features):
    """What does not depend on the order of the nodes: of eigenvectors, the projector; of signals
    that are the nodes, the inner products.
    """
    return features @ features.T if entry.key in TURNED else features


@every_encoder
def test_features_of_any_graph_have_the_declared_width(entry):
    for graph, spec in itertools.product(GRAPHS.values(), specs(entry)):
        n = len(graph)
        encoder = make_graph_features(spec)
        assert isinstance(encoder, GraphEncoder)
        for rng in (None, np.random.default_rng(0)):
            features = encoder.encode(graph, rng)
            assert (features.shape, features.dtype) == ((n, encoder.width), np.float32)
            assert np.isfinite(features).all()
        for name, pairs in encoder.pairs(graph).items():
            assert name.startswith(PAIRS) and pairs.shape[:2] == (n, n)
            assert pairs.dtype in (np.float32, np.int32) and np.isfinite(pairs).all()
        draws = encoder.encode_draws(graph)
        assert draws.shape == (encoder.draws, n, encoder.width)
        np.testing.assert_array_equal(draws[0], encoder.encode(graph))


@every_encoder
def test_the_order_of_the_nodes_does_not_matter(entry):
    for graph, spec in itertools.product(GRAPHS.values(), specs(entry)):
        order = np.random.default_rng(1).permutation(len(graph))
        draw = np.random.default_rng(2).standard_normal((len(graph), 16))
        encoder = make_graph_features(spec)
        # All eigenvectors: the last two that are kept may have one eigenvalue with the next.
        if entry.key in OF_EIGENVECTORS:
            encoder = dataclasses.replace(encoder, vectors=len(graph))
        one = encoder.encode(graph, Drawn(draw))[order]
        other = encoder.encode(graph[np.ix_(order, order)], Drawn(draw[order]))
        np.testing.assert_allclose(invariant(entry, other), invariant(entry, one), atol=2e-6)
        turned = encoder.pairs(graph[np.ix_(order, order)])
        for name, pairs in encoder.pairs(graph).items():
            np.testing.assert_allclose(turned[name], pairs[np.ix_(order, order)], atol=1e-7)


@every_encoder
def test_only_randomised_encoders_draw(entry):
    for spec in specs(entry):
        encoder = make_graph_features(spec)
        np.testing.assert_array_equal(encoder.encode(RANDOM), encoder.encode(RANDOM))
        same = lambda seed: encoder.encode(RANDOM, np.random.default_rng(seed))
        np.testing.assert_array_equal(same(0), same(0))
        apart = any((same(seed) != same(0)).any() for seed in range(1, 5))
        assert apart == encoder.randomised
        if not encoder.randomised:
            np.testing.assert_array_equal(same(0), encoder.encode(RANDOM))


@every_encoder
def test_entries_of_any_type_and_their_graph_alone_decide(entry):
    encoder = make_graph_features(entry.card.example)

    def found(graph):
        parts = encoder.encode(graph), *encoder.pairs(graph).values()
        return np.concatenate([part.ravel() for part in parts])

    kept = RANDOM.copy()
    wanted = found(RANDOM)
    for dtype in (np.int8, np.float32, np.float64):
        np.testing.assert_array_equal(found(RANDOM.astype(dtype)), wanted)
    np.testing.assert_array_equal(RANDOM, kept)
    assert np.abs(found(circulant(9)) - wanted).max() > 1e-3


@every_encoder
def test_the_example_round_trips(entry):
    parsed = parse(entry.card.example, ('graph',))
    assert parse(str(parsed), ('graph',)) == parsed
    encoder = make_graph_features(entry.card.example)
    assert encoder == make_graph_features(str(parsed)) and hash(encoder) == hash(encoder)
    with pytest.raises(dataclasses.FrozenInstanceError):
        encoder.anything = 1


def test_features_are_joined():
    encoder = make_graph_features('lcp() | rfp(features=2, steps=1, draws=3) | rwse(steps=4)')
    assert isinstance(encoder, JoinedGraphFeatures)
    assert (encoder.width, encoder.randomised, encoder.draws) == (13, True, 3)
    found = encoder.encode_draws(RANDOM)
    assert found.shape == (3, 9, 13)
    np.testing.assert_array_equal(found[1, :, :5], make_graph_features('lcp()').encode(RANDOM))
    np.testing.assert_array_equal(
        found[2, :, 9:], make_graph_features('rwse(steps=4)').encode(RANDOM)
    )
    assert (found[0, :, 5:9] != found[1, :, 5:9]).all()
    assert encoder.network(3, rngs=nnx.Rngs(0)) is None


def test_features_of_pairs_are_joined():
    encoder = make_graph_features('rrwp(steps=3) | graphormer_spatial()')
    assert (encoder.width, encoder.encode(RANDOM).shape) == (3, (9, 3))
    assert {name: (a.shape, a.dtype) for name, a in encoder.pairs(RANDOM).items()} == {
        'graph_rrwp': ((9, 9, 3), np.float32),
        'graph_distance': ((9, 9), np.int32),
    }
    with pytest.raises(ValueError, match="two encoders give the feature 'graph_rrwp' of pairs"):
        make_graph_features('rrwp() | rrwp(steps=3)').pairs(RANDOM)


def test_joined_features_with_a_trained_part():
    spec = "lcp() | rfp(features=2, steps=3, operator='learned') | rwse(steps=4)"
    encoder = make_graph_features(spec)
    assert encoder.width == 11
    network = encoder.network(3, rngs=nnx.Rngs(0))
    assert network.width == 5 + 8 + 4
    features = jnp.asarray(encoder.encode(RANDOM))
    nodes, valid = jax.random.normal(jax.random.key(0), (9, 3)), jnp.ones(9, bool)
    out = network(features, nodes, jnp.asarray(RANDOM), valid)
    assert out.shape == (9, network.width) and out.dtype == jnp.float32
    np.testing.assert_array_equal(out[:, :7], features[:, :7])
    np.testing.assert_array_equal(out[:, -4:], features[:, -4:])
    alone = encoder.parts[1].network(3, rngs=nnx.Rngs(0))
    expected = alone(features[:, 5:7], nodes, jnp.asarray(RANDOM), valid)
    np.testing.assert_array_equal(out[:, 5:13], expected)
    trained = jax.tree.leaves(nnx.state(network, nnx.Param))
    assert [leaf.shape for leaf in trained] == [(3, 16), (3, 16)]


def test_features_are_scaled_by_a_data_set():
    encoder = make_graph_features("lcp(curvature='frc') | rwse(steps=2)")
    features = [encoder.encode(graph) for graph in (RANDOM, circulant(6), complete(4))]
    mean, std = feature_scale(features)
    scaled = np.concatenate([(one - mean) / std for one in features])
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(0)[:5], 1, atol=1e-5)
    assert std[5] == 1 and (scaled[:, 5] == 0).all()  # P has no diagonal


def edge(i, j, value, other=None, n=4):
    graph = complete(n).astype(float)
    graph[i, j] = value
    graph[j, i] = value if other is None else other
    return graph


@pytest.mark.parametrize(
    'graph, message',
    [
        (np.zeros((3, 4)), r'square matrix \[n, n\], got an array of \(3, 4\)'),
        (np.zeros(3), r'square matrix \[n, n\], got an array of \(3,\)'),
        (np.zeros((0, 0)), 'the graph is empty, n = 0'),
        (np.array([['a', 'b'], ['b', 'a']]), 'has entries 0 and 1, got an array of <U1'),
        (edge(1, 2, 0.0, 1.0), r'adjacency\[1, 2\] is 0.0, but adjacency\[2, 1\] is 1.0'),
        (edge(1, 3, 2.0), r'adjacency\[1, 3\] is 2.0, expected 0 or 1'),
        (edge(0, 3, -1.0), r'adjacency\[0, 3\] is -1.0, expected 0 or 1'),
        (edge(2, 3, np.nan), r'adjacency\[2, 3\] is nan, expected 0 or 1'),
        (edge(1, 1, 1.0), r'adjacency\[1, 1\] is 1.0: node 1 is joined to itself'),
    ],
)
def test_what_is_no_adjacency_is_refused(graph, message):
    for entry in ENTRIES:
        with pytest.raises(ValueError, match=message):
            make_graph_features(entry.card.example).encode(graph)


def test_adjacencies_are_copied_and_their_edges_listed():
    graph = from_edges(4, [(3, 1), (0, 1)])
    checked = check_adjacency(graph)
    assert checked.dtype == np.float64 and not np.shares_memory(checked, graph)
    assert not np.shares_memory(check_adjacency(checked), checked)
    assert edges_of(graph).tolist() == [[0, 1], [1, 3]]
    assert edges_of(np.zeros((2, 2))).shape == (0, 2)
