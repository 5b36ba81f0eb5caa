"""PEARL: responses and a layer by hand, a loop over signals, permutations, draws, and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.features.graphs import make_graph_features
from posenc_jax.features.graphs.adjacency import graph_operator
from posenc_jax.features.graphs.pearl import pearl_responses
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.model.inputs import tokens_of
from posenc_jax.lab.tasks.graphs import Triangles, random_graph
from posenc_jax.lab.tasks.graphs.named import circulant, complete, from_edges
from tests.features.signnet_test import mlp_by_loop, normalised_by_hand
from tests.golden_files import golden_suite
from tests.mixers.small import assert_all_learn

PATH = from_edges(3, [(0, 1), (1, 2)]).astype(float)
GRAPH = random_graph(np.random.default_rng(2), 7, 0.4)
SMALL = 'layers=2, hidden=4, mlp_hidden=5, mlp_layers=2, out=3'


def made(spec, seed=0):
    encoder = make_graph_features(spec)
    return encoder, encoder.network(1, rngs=nnx.Rngs(seed))


def result(encoder, network, graph, features=None):
    features = encoder.encode(graph) if features is None else features
    given = jnp.ones((len(graph), 1)), jnp.asarray(graph, bool), jnp.ones(len(graph), bool)
    return network(jnp.asarray(features), *given)


def responses(power):
    return lambda: pearl_responses(graph_operator(PATH, 'lap'), np.eye(3), 3)[..., power]


def layer_by_hand(pool):
    encoder, network = made(
        f'pearl(signals=5, powers=2, basis=True, layers=1, mlp_layers=2, mlp_hidden=1, out=1, '
        f"lift=False, norm=False, pool='{pool}')"
    )
    first, second = network.gin.mlps[0].weights
    first[...], second[...] = jnp.array([[1.0], [2.0]]), jnp.ones((1, 1))
    return lambda: result(encoder, network, PATH)


test_golden = golden_suite('pearl', atol=1e-6) | {
    'laplacian': responses(1),
    'squared': responses(2),
    'basis': layer_by_hand('sum'),
    'mean': layer_by_hand('mean'),
}


def by_loop(network, graph, signals, powers):
    """Signal by signal in float64."""
    laplacian, total = graph_operator(graph.astype(float), 'lap'), 0
    for w in signals.T:
        x = np.stack([np.linalg.matrix_power(laplacian, k) @ w for k in range(powers)], axis=1)
        x = np.maximum(normalised_by_hand(mlp_by_loop(network.lift, x)), 0)
        for number, mlp in enumerate(network.gin.mlps):
            x = normalised_by_hand(x) if number else x
            x = mlp_by_loop(mlp, x + graph @ x)
        total = total + x
    return total


@pytest.mark.parametrize('basis', [False, True])
def test_it_is_a_loop_over_signals(basis):
    """Of nine signals; a graph of 7 nodes has 7 of the basis."""
    encoder, network = made(f'pearl(basis={basis}, signals=9, powers=3, {SMALL})')
    assert (encoder.width, network.width, encoder.randomised) == (27, 3, not basis)
    w = np.eye(7) if basis else np.random.default_rng(0).standard_normal((7, 9))
    found = result(encoder, network, GRAPH)
    np.testing.assert_allclose(found, by_loop(network, GRAPH, w, 3), atol=2e-3, rtol=1e-4)


def test_magnitudes_of_one_channel_reach_the_layers():
    """A norm of each node by itself would leave the signs of a draw."""
    encoder, network = made(f'pearl(signals=1, powers=1, {SMALL})')
    one, other = np.random.default_rng(0).standard_normal((2, 7, 1)).astype(np.float32)
    other = np.sign(one) * np.abs(other)
    found = [np.asarray(result(encoder, network, GRAPH, w)) for w in (one, other)]
    assert np.linalg.norm(found[0] - found[1]) > 0.1 * np.linalg.norm(found[0])


def test_basis_signals_follow_the_order_of_the_nodes():
    encoder, network = made(f'pearl(basis=True, signals=7, powers=4, {SMALL})')
    order = np.random.default_rng(0).permutation(7)
    plain = result(encoder, network, GRAPH)
    turned = result(encoder, network, GRAPH[np.ix_(order, order)])
    np.testing.assert_allclose(turned, plain[order], atol=1e-4)


def test_random_signals_follow_it_with_their_draws():
    encoder, network = made(f'pearl(signals=6, {SMALL})')
    order = np.random.default_rng(0).permutation(7)
    drawn = encoder.encode(GRAPH, np.random.default_rng(5))
    np.testing.assert_array_equal(drawn, encoder.encode(GRAPH, np.random.default_rng(5)))
    plain = result(encoder, network, GRAPH, drawn)
    turned = result(encoder, network, GRAPH[np.ix_(order, order)], drawn[order])
    np.testing.assert_allclose(turned, plain[order], atol=1e-4)
    draws = make_graph_features('pearl(signals=6, draws=3)').encode_draws(GRAPH)
    assert draws.shape == (3, 7, 6) and len(np.unique(draws[:, 0, 0])) == 3


def test_powers_are_those_of_the_paper_unless_they_are_given():
    for spec, powers in (('', 1), ('basis=True', 7), ('basis=True, powers=2', 2)):
        encoder, network = made(f'pearl({spec})')
        assert (encoder.width, network.powers) == (120 * powers, powers)
        assert network.lift.weights[0].shape[0] == powers


def test_the_mean_of_four_times_the_signals_deviates_half_as_much():
    graph = jnp.asarray(GRAPH)
    deviations = []
    for signals in (30, 120):
        encoder, network = made(f"pearl(signals={signals}, pool='mean', {SMALL})")
        drawn = [encoder.encode(GRAPH, np.random.default_rng(seed)) for seed in range(64)]
        given = jnp.ones((7, 1)), graph, jnp.ones(7, bool)
        found = jax.jit(jax.vmap(lambda x: network(x, *given)))(jnp.asarray(np.stack(drawn)))
        deviations.append(np.asarray(found).std(0).mean())
    assert 0.4 < deviations[1] / deviations[0] < 0.6


def test_without_a_nonlinearity_random_signals_say_nothing():
    """The mean of the responses themselves vanishes with the number of signals."""
    w = np.random.default_rng(0).standard_normal((7, 40_000))
    found = pearl_responses(graph_operator(GRAPH.astype(float), 'lap'), w, 2).mean(1)
    assert np.abs(found).max() < 0.03


def test_a_network_without_nonlinearities_says_nothing():
    """Its mean over random signals vanishes, and that of a network with relu does not."""
    for maps, least, most in ((1, 0, 0.1), (2, 0.3, np.inf)):
        encoder, network = made(
            f'pearl(signals=4000, layers=2, hidden=4, mlp_hidden=5, mlp_layers={maps}, out=3, '
            "lift=False, norm=False, pool='mean')"
        )
        w = encoder.encode(GRAPH)
        plain = np.asarray(result(encoder, network, GRAPH, w))
        one = np.asarray(result(encoder, network, GRAPH, w[:, :1]))
        share = np.abs(plain).max() / np.abs(one).max()
        assert least <= share < most
        turned = np.asarray(result(encoder, network, GRAPH, -w))
        assert np.allclose(turned, -plain, atol=1e-5) == (maps == 1)


def test_it_tells_skip_link_graphs_apart():
    """All nodes of these graphs look alike to colour refinement."""
    encoder, network = made('pearl(basis=True, signals=11, powers=7, layers=3, hidden=8, out=4)')
    one, other = (result(encoder, network, circulant(11, (1, r))) for r in (2, 3))
    for found in (one, other):
        np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), atol=2e-3)
    assert np.abs(one[0] - other[0]).max() > 0.05


def test_padding_adds_nothing():
    """Neither nodes nor signals that a smaller graph does not have, though the maps have biases."""
    encoder, network = made(f"pearl(basis=True, signals=7, powers=2, pool='mean', {SMALL})")
    for mlp in (network.lift, *network.gin.mlps):
        for bias in mlp.biases:
            bias[...] = bias[...] + 0.3
    valid = jnp.arange(7) < 3
    padded = jnp.zeros((7, 14)).at[:3].set(encoder.encode(PATH))
    edges = jnp.asarray(complete(7)).at[:3, :3].set(PATH > 0)
    found = network(padded, jnp.ones((7, 1)), edges, valid)
    np.testing.assert_allclose(found[:3], result(encoder, network, PATH), atol=1e-5)
    assert not found[3:].any()


def test_a_model_reads_the_responses_as_they_are_and_learns():
    spec = f'pearl(signals=4, powers=2, {SMALL})'
    batch = Triangles(features=spec).sample(np.random.default_rng(0), 2, (6, 8))
    assert batch['vectors'].shape == (2, 8, 9)
    cfg = TransformerConfig(
        vocab_size=0, channels=9, output_size=2, train_len=8, layers=1, width=8, heads=2,
        kind='encoder', encoding='nope()', pool='', features=spec,
    )  # fmt: skip
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    tok = tokens_of(batch)
    slopes = nnx.jit(nnx.grad(lambda model: (model(batch['vectors'], tok) ** 2).sum()))(model)
    named = [(jax.tree_util.keystr(p), a) for p, a in jax.tree_util.tree_leaves_with_path(slopes)]
    assert_all_learn({name: slope for name, slope in named if 'network' in name})


def test_a_graph_of_more_nodes_than_basis_signals_is_refused():
    encoder = make_graph_features('pearl(basis=True, signals=6)')
    with pytest.raises(ValueError, match='the graph has 7 nodes, signals=6; use signals=7'):
        encoder.encode(GRAPH)
