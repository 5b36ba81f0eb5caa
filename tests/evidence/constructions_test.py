"""Constructions: what graphs and gates are made of is what the claims say of them."""

import numpy as np
import pytest

from evidence.experiments import constructions, enlarged
from posenc_jax.features.graphs.graphormer import graphormer_shortest_paths
from posenc_jax.lab.conversion.pi_resize import resize_matrix
from posenc_jax.lab.tasks.graphs.named import relabelled


@pytest.mark.parametrize('step', [2, 3])
def test_a_petersen_graph_has_three_neighbours_and_the_same_distances_from_every_node(step):
    graph = constructions.petersen(10, step)
    assert graph.shape == (20, 20) and (graph.sum(0) == 3).all()
    distances = graphormer_shortest_paths(graph)[0]
    assert {tuple(np.bincount(row)) for row in distances} == {(1, 3, 6, 6, 3, 1)}


def test_colours_do_not_depend_on_the_order_of_nodes_and_tell_a_path_from_a_star():
    path, star = np.zeros((2, 4, 4), bool)
    path[[0, 1, 2], [1, 2, 3]] = star[0, 1:] = True
    told = lambda *both: constructions.told_apart(
        [graphormer_shortest_paths(graph | graph.T)[0][..., None] for graph in both]
    )
    assert told(path, relabelled(np.random.default_rng(0), path | path.T)) == 0
    assert told(path, star) == 1


def test_patches_are_enlarged_one_by_one():
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
    apart = np.kron(np.eye(2), resize_matrix(4, 8))
    found = enlarged.resized(images, apart)
    own = enlarged.resized(images[:, 4:, :4], resize_matrix(4, 8))
    np.testing.assert_allclose(found[:, 8:, :8], own, atol=1e-6)
