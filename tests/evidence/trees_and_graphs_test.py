"""Experiments on trees, marked nodes and larger windows: their data and their models by hand."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from evidence.experiments import communities, node_distances, trees, windows
from posenc_jax.features.graphs.graphormer import graphormer_shortest_paths
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.methods.swin_table import SwinTable


def root_first(path):
    """The branches from the root to a node."""
    return tuple(int(branch) for branch in path[::-1] if branch)


def test_trees_have_different_shapes_and_stand_breadth_first():
    drawn = trees.trees(40)
    shapes = {tuple(sorted(map(root_first, own.paths))) for own in drawn}
    assert len(shapes) == 40
    for own in drawn:
        nodes = [root_first(path) for path in own.paths]
        assert nodes == sorted(nodes, key=lambda node: (len(node), node)) and nodes[0] == ()
        assert trees.FEWEST <= len(nodes) <= trees.MOST and len(nodes[-1]) <= trees.DEPTH
        for node, above in zip(nodes, own.grandparents):
            assert above == (nodes.index(node[:-2]) if len(node) > 1 else -1)


def test_answers_are_the_values_at_the_places_that_are_asked_for():
    drawn = trees.trees(6)
    batch = trees.rows(np.random.default_rng(0), drawn, 'translation')
    for number, own in enumerate(drawn):
        count = len(own.paths)
        values = dict(zip(map(root_first, own.paths), batch['tokens'][number]))
        asked = np.flatnonzero(batch['asked'][number])
        assert asked.tolist() == list(range(count, 2 * count))
        for place in asked:
            node = root_first(batch['paths'][number, place])
            if number % 2:
                node = tuple(3 - branch for branch in node)
            assert batch['tokens'][number, place] == trees.ASKED + number % 2
            assert batch['answers'][number, place] == values[node]
    batch = trees.rows(np.random.default_rng(0), drawn, 'grandparents')
    for number, own in enumerate(drawn):
        values = dict(zip(map(root_first, own.paths), batch['tokens'][number]))
        for place in np.flatnonzero(batch['asked'][number]):
            above = root_first(own.paths[place])[:-2]
            assert batch['answers'][number, place] == values[above]


def test_marked_nodes_are_the_first_two_and_have_their_distance():
    drawn, distances = node_distances.graphs(0, 30)
    for graph, distance in zip(drawn, distances):
        assert graphormer_shortest_paths(graph)[0][0, 1] == distance
        assert graphormer_shortest_paths(graph)[0].max() >= 1  # -1 would be a pair without a path
    assert set(distances) == set(range(1, node_distances.FARTHEST + 1))
    for features, _ in node_distances.ENCODINGS.values():
        made = node_distances.arrays(0, 4, features)
        assert made['vectors'][:, :, 1].sum(1).tolist() == [2] * 4
        assert made['valid'].sum(1).tolist() == [len(graph) for graph in drawn[:4]]


def test_features_of_test_graphs_are_scaled_like_those_of_training():
    train, test = (node_distances.arrays(part, 20, 'rwse(steps=3)') for part in (0, 1))
    own, other = (node_distances.standardised(part, train) for part in (train, test))
    known, back = (part['vectors'][part['valid']][:, 2:] for part in (own, other))
    np.testing.assert_allclose(known.mean(0), 0, atol=1e-4)
    # No walk is back after one step, and such a feature stays 0.
    np.testing.assert_allclose(known.std(0), [0, 1, 1], atol=1e-3)
    raw = train['vectors'][train['valid']][:, 3]
    there = test['vectors'][test['valid']][:, 3]
    np.testing.assert_allclose(back[:, 1], (there - raw.mean()) / raw.std(), atol=1e-4)


def test_nodes_of_the_community_of_the_marked_one_share_more_edges_with_it():
    adjacency, same = communities.graphs(0, 400)
    assert same[:, 0].all() and (same.sum(1) == communities.NODES // 2).all()
    assert not adjacency[:, range(24), range(24)].any()
    np.testing.assert_array_equal(adjacency, adjacency.swapaxes(1, 2))
    of_marked, others = adjacency[:, 0, 1:], same[:, 1:]
    assert of_marked[others].mean() == pytest.approx(communities.INSIDE, abs=0.03)
    assert of_marked[~others].mean() == pytest.approx(communities.BETWEEN, abs=0.03)


def test_features_are_those_of_the_chosen_graphs():
    drawn = communities.features(0, 4, communities.FEATURES['rfp'], 2)
    assert not np.array_equal(drawn[0], drawn[1])
    chosen = np.array([2, 0])
    batch = communities.batch(0, 4, chosen, drawn[0, chosen])
    np.testing.assert_array_equal(batch['vectors'][..., 2:], drawn[0, chosen])
    assert batch['vectors'][:, :, 1].sum(1).tolist() == [1, 1]
    assert batch['same'].tolist() == communities.graphs(0, 4)[1][chosen].tolist()


@pytest.mark.full
def test_a_table_serves_a_larger_window():
    sizes: Any = dict(vocab_size=0, channels=1, patch=2, output_size=4, layers=2, width=32, heads=4)
    cfg = TransformerConfig(
        **sizes, train_len=16, kind='encoder', pool='mean', encoding='swin_table(4, 4)'
    )
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    image = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16, 1)), jnp.float32)
    with pytest.raises(ValueError, match='use size='):
        model(image)
    larger = windows.in_window(model, 8)
    assert larger(image).shape == (2, 1, 4)
    assert [part.window for part in model.encodings if isinstance(part, SwinTable)][0] == (4, 4)
    own = Transformer(
        TransformerConfig(
            **sizes, train_len=64, kind='encoder', pool='mean',
            encoding='swin_table(4, 4, size=(8, 8))',
        ), rngs=nnx.Rngs(0),
    )  # fmt: skip
    np.testing.assert_allclose(larger(image), own(image), atol=1e-6)
