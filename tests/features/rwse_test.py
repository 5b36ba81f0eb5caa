"""Return probabilities of random walks: by hand, by powers, and limits."""

import numpy as np
import pytest

from posenc_jax.features.graphs import make_graph_features
from posenc_jax.features.graphs.rwse import rwse_probabilities
from posenc_jax.lab.tasks.graphs import blind_pair, random_graph
from posenc_jax.lab.tasks.graphs.named import circulant, complete, disjoint, from_edges, rook
from tests.golden_files import golden_suite

STAR = from_edges(4, [(0, 1), (0, 2), (0, 3)])


def walks(graph, node, steps=5):
    return lambda: make_graph_features(f'rwse(steps={steps})').encode(graph)[node]


test_golden = golden_suite('rwse', atol=1e-7) | {
    'cycle': walks(circulant(5), 3),
    'star_centre': walks(STAR, 0),
    'star_leaf': walks(STAR, 2),
    'complete_4': walks(complete(4), 1),
    'rook': walks(rook(), 7, steps=4),
}


@pytest.mark.parametrize('steps', [1, 2, 3, 8, 9])
def test_it_is_the_diagonal_of_powers(steps):
    graph = disjoint(random_graph(np.random.default_rng(0), 7, 0.5), complete(1)).astype(float)
    degrees = np.maximum(graph.sum(1), 1)
    powers = [np.linalg.matrix_power(graph / degrees[:, None], k + 1) for k in range(steps)]
    found = rwse_probabilities(graph, steps)
    np.testing.assert_allclose(found, np.stack([np.diag(p) for p in powers], 1), atol=1e-15)
    assert ((found >= 0) & (found <= 1)).all() and not found[7].any()


def test_walks_in_bipartite_graphs_are_back_after_even_steps_only():
    found = make_graph_features('rwse()').encode(circulant(8))
    assert found.shape == (8, 16) and not found[:, 0::2].any() and found[:, 1::2].all()


def test_long_walks_forget_their_start():
    graph = random_graph(np.random.default_rng(3), 9, 0.6)
    found = rwse_probabilities(graph.astype(float), 200)[:, -1]
    np.testing.assert_allclose(found, graph.sum(1) / graph.sum(), atol=1e-9)


def test_what_it_tells_apart():
    """Walks see nothing of the strongly regular pair, and the rings of the molecules."""
    of = lambda name: [rwse_probabilities(g.astype(float), 16) for g in blind_pair(name)]
    one, other = of('rook_shrikhande')
    np.testing.assert_allclose(one, other, atol=1e-12)
    one, other = of('decalin_bicyclopentyl')
    assert one[:, 4].max() == 0 < other[:, 4].min()  # walks around a pentagon
