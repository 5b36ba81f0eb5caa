"""Laplacian eigenvectors: eigenvalues by hand and of the karate club, the equation, signs, and
graphs of several components.
"""

import numpy as np
import pytest

from posenc_jax.features.graphs import make_graph_features
from posenc_jax.features.graphs.lap_pe import (
    canonical_signs,
    lap_pe_eigenvectors,
    lap_pe_sign_invariant,
)
from posenc_jax.lab.tasks.graphs import blind_pair, random_graph
from posenc_jax.lab.tasks.graphs.named import circulant, complete, disjoint, from_edges
from tests.golden_files import golden

GOLDEN = golden('lap_pe')['values']
KARATE = from_edges(34, GOLDEN['karate_edges']).astype(float)
STAR = from_edges(4, [(0, 1), (0, 2), (0, 3)]).astype(float)


def laplacian(graph):
    """By the definition, entry by entry."""
    n, degrees = len(graph), graph.sum(1)
    found = np.eye(n)
    for i in range(n):
        for j in range(n):
            if graph[i, j]:
                found[i, j] -= 1 / (degrees[i] * degrees[j]) ** 0.5
    return found


@pytest.mark.parametrize(
    'name, graph', [('cycle', circulant(5).astype(float)), ('star', STAR), ('karate', KARATE)]
)
def test_golden_eigenvalues(name, graph):
    values, vectors = lap_pe_eigenvectors(graph, len(GOLDEN[name]))
    np.testing.assert_allclose(values, GOLDEN[name], atol=6e-5 if name == 'karate' else 1e-6)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(values)), atol=1e-12)
    np.testing.assert_allclose(laplacian(graph) @ vectors, vectors * values, atol=1e-12)
    first = np.sqrt(graph.sum(1))
    np.testing.assert_allclose(first @ vectors, 0, atol=1e-12)


def test_a_graph_of_several_components_loses_one_eigenvector_for_zero():
    graph = disjoint(circulant(5), complete(3), complete(1)).astype(float)
    values, vectors = lap_pe_eigenvectors(graph, 2)
    # By hand: of the two components, the part that is orthogonal to D^1/2 1.
    ends = np.repeat([1 / 10, -1 / 6, 0], [5, 3, 1]) * np.sqrt(graph.sum(1))
    np.testing.assert_allclose(values, [0, 1 - np.cos(2 * np.pi / 5)], atol=1e-12)
    cosine = abs(vectors[:, 0] @ ends / np.linalg.norm(ends))
    np.testing.assert_allclose(cosine, 1, atol=1e-12)
    # The isolated node has an eigenvector of its own, with eigenvalue 1.
    values, vectors = lap_pe_eigenvectors(graph, 8)
    alone = vectors[8] ** 2 @ (np.abs(values - 1) < 1e-9)
    np.testing.assert_allclose(alone, 1, atol=1e-12)


def test_small_graphs_are_filled_up():
    for n in (1, 2, 3):
        found = make_graph_features('lap_pe(vectors=4)').encode(complete(n))
        assert found.shape == (n, 4) and not found[:, n - 1 :].any()
        assert np.linalg.matrix_rank(found) == n - 1


def test_signs():
    graph = random_graph(np.random.default_rng(0), 8, 0.5)
    make = lambda signs: make_graph_features(f'lap_pe(vectors=5, signs={signs!r})')
    plain = make('canonical').encode(graph)
    assert (plain[np.abs(plain).argmax(0), range(5)] > 0).all()
    np.testing.assert_array_equal(make('random').encode(graph), plain)
    np.testing.assert_array_equal(make('abs').encode(graph), np.abs(plain))
    drawn = [make('random').encode(graph, np.random.default_rng(seed)) for seed in range(40)]
    signs = np.array([(found * plain).sum(0) for found in drawn]).round(4)
    assert set(np.unique(signs)) == {-1, 1} and (np.abs(signs.mean(0)) < 0.5).all()
    for signs in ('canonical', 'abs'):
        found = make(signs).encode(graph, np.random.default_rng(1))
        np.testing.assert_array_equal(found, make(signs).encode(graph))
    assert canonical_signs(np.array([[1.0, -1.0], [-1.0, 1.0]])).tolist() == [1, -1]
    phi = lambda v: np.tanh(v) + v**2
    np.testing.assert_allclose(
        lap_pe_sign_invariant(phi, drawn[0]), lap_pe_sign_invariant(phi, plain), atol=1e-6
    )


def test_it_cannot_tell_cospectral_regular_graphs_by_eigenvalues():
    one, other = (
        lap_pe_eigenvectors(g.astype(float), 15)[0] for g in blind_pair('rook_shrikhande')
    )
    np.testing.assert_allclose(one, other, atol=1e-12)
    one, other = (
        lap_pe_eigenvectors(g.astype(float), 9)[0] for g in blind_pair('decalin_bicyclopentyl')
    )
    assert np.abs(one - other).max() > 0.1
