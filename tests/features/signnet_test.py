"""SignNet: a path by hand, a loop over eigenvectors, signs, padding, small graphs, and limits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.features.graphs import make_graph_features
from posenc_jax.features.graphs.lap_pe import lap_pe_eigenvectors, lap_pe_sign_invariant
from posenc_jax.features.graphs.networks import Mlp, SignalGIN
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.model.inputs import tokens_of
from posenc_jax.lab.tasks.graphs import Triangles, random_graph
from posenc_jax.lab.tasks.graphs.named import circulant, complete, disjoint, from_edges
from tests.golden_files import golden, golden_suite
from tests.mixers.small import assert_all_learn

GOLDEN = golden('signnet')['values']
PATH = from_edges(3, [(0, 1), (1, 2)])
GRAPH = random_graph(np.random.default_rng(2), 8, 0.4)
NODES = jnp.ones((8, 1))
run = nnx.jit(lambda network, v, adjacency, valid: network(v, NODES, adjacency, valid))


def by_hand(combine, rho):
    """phi is relu of the sums; rho is linear."""
    network = make_graph_features(
        f"signnet(vectors=2, layers=1, hidden=1, channels=1, combine='{combine}')"
    ).network(1, rngs=nnx.Rngs(0))
    first, second = network.phi.mlps[0].weights
    first[...], second[...] = jnp.ones((1, 1)), jnp.ones((1, 1))
    network.rho.weights[0][...] = jnp.asarray(rho)
    network.rho.biases[0][...] = jnp.full(2, 0.5)
    v = jnp.array(GOLDEN['vectors'])
    return network(v, jnp.ones((3, 1)), jnp.asarray(PATH), jnp.ones(3, bool))


def sums_by_hand():
    return by_hand('concat', np.eye(2)) - 0.5


test_golden = golden_suite('signnet', atol=1e-6) | {
    'sums': sums_by_hand,
    'concatenated': lambda: by_hand('concat', [[1.0, 0.0], [2.0, 0.0]]),
    'added': lambda: by_hand('sum', [[1.0, 0.0]]),
}


def mlp_by_loop(mlp, x):
    for number, (w, b) in enumerate(zip(mlp.weights, mlp.biases)):
        x = np.maximum(x, 0) if number else x
        x = x @ np.asarray(w[...], np.float64) + np.asarray(b[...], np.float64)
    return x


def normalised_by_hand(x):
    """A signal [n, C]."""
    x = x - x.mean(0)
    return x / np.sqrt((x**2).mean(0) + 1e-5)


def phi_by_loop(network, v, graph):
    x = v[:, None]
    for number, mlp in enumerate(network.phi.mlps):
        x = normalised_by_hand(x) if number else x
        sums = [x[i] + sum(x[j] for j in np.flatnonzero(graph[i])) for i in range(len(graph))]
        x = mlp_by_loop(mlp, np.array(sums))
    return x


@pytest.fixture(scope='module')
def network():
    spec = 'signnet(vectors=4, layers=3, hidden=6, channels=2)'
    return make_graph_features(spec).network(1, rngs=nnx.Rngs(0))


VECTORS = lap_pe_eigenvectors(GRAPH.astype(float), 4)[1]
FEATURES, EDGES = jnp.asarray(VECTORS, jnp.float32), jnp.asarray(GRAPH)
REAL = jnp.ones(8, bool)


def test_it_is_a_loop_over_eigenvectors(network):
    parts = [phi_by_loop(network, v, GRAPH) + phi_by_loop(network, -v, GRAPH) for v in VECTORS.T]
    expected = mlp_by_loop(network.rho, np.concatenate(parts, axis=1))
    found = run(network, FEATURES, EDGES, REAL)
    assert found.shape == (8, network.width) == (8, 4)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_no_pattern_of_signs_changes_a_bit(network):
    plain = run(network, FEATURES, EDGES, REAL)
    for signs in itertools.product((1.0, -1.0), repeat=4):
        np.testing.assert_array_equal(run(network, FEATURES * jnp.array(signs), EDGES, REAL), plain)
    assert np.abs(run(network, jnp.abs(FEATURES), EDGES, REAL) - plain).max() > 1e-3


def test_magnitudes_are_read_and_not_the_signs_of_the_first_sums_alone(network):
    """Signals v for which (I + A) v has the same signs and other magnitudes."""
    ring, rng = circulant(8), np.random.default_rng(3)
    sums = rng.choice((-1, 1), 8) * rng.uniform(0.1, 1.0, (2, 8))
    signals = np.linalg.solve(np.eye(8) + ring, sums.T).T
    signals /= np.linalg.norm(signals, axis=1, keepdims=True)
    edges = jnp.asarray(ring, jnp.float32)
    phi = lambda v: network.phi(v[..., None], edges, REAL)
    found = np.asarray(lap_pe_sign_invariant(phi, jnp.asarray(signals.T, jnp.float32)))
    one, other = found[:, 0], found[:, 1]
    assert np.linalg.norm(one - other) > 0.1 * np.linalg.norm(one)


def test_relabelled_nodes_and_padding(network):
    order = np.random.default_rng(0).permutation(8)
    plain = run(network, FEATURES, EDGES, REAL)
    turned = run(network, FEATURES[order], EDGES[order][:, order], REAL)
    np.testing.assert_allclose(turned, plain[order], atol=1e-5)
    # Three nodes of which there are two eigenvectors, and padding with edges.
    valid = jnp.arange(8) < 3
    path = make_graph_features('signnet(vectors=4)').encode(PATH)
    assert path.shape == (3, 4) and not path[:, 2:].any()
    padded = jnp.zeros((8, 4)).at[:3].set(path)
    found = run(network, padded, EDGES.at[:3, :3].set(PATH), valid)
    alone = network(jnp.asarray(path), NODES[:3], jnp.asarray(PATH), jnp.ones(3, bool))
    np.testing.assert_allclose(found[:3], alone, atol=1e-5)
    assert not found[3:].any()


def test_what_is_missing_in_a_small_graph_adds_nothing():
    """phi has biases, so eigenvectors of zeros would have results."""
    network = make_graph_features(
        "signnet(vectors=3, layers=1, hidden=2, channels=2, combine='sum')"
    ).network(1, rngs=nnx.Rngs(0))
    for mlp in (*network.phi.mlps, network.rho):
        for bias in mlp.biases:
            bias[...] = bias[...] + 0.7
    one = jnp.array([[0.6, 0.0, 0.0], [-0.8, 0.0, 0.0]])
    given = jnp.ones((2, 1)), jnp.asarray(complete(2)), jnp.ones(2, bool)
    v = np.asarray(one[:, 0], np.float64)
    expected = phi_by_loop(network, v, complete(2)) + phi_by_loop(network, -v, complete(2))
    np.testing.assert_allclose(network(one, *given), mlp_by_loop(network.rho, expected), atol=1e-5)


def test_a_linear_phi_knows_nothing():
    """`phi(v) + phi(-v) = 0`: no bias, and one linear map in a layer."""
    phi = SignalGIN([Mlp((1, 3), nnx.Rngs(0))], norm=False)
    edges = jnp.asarray(GRAPH, jnp.float32)
    found = lap_pe_sign_invariant(lambda v: phi(v[..., None], edges, REAL), FEATURES)
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_eigenvectors_of_several_components_have_no_signs_either():
    graph = disjoint(complete(3), complete(3))
    encoder = make_graph_features('signnet(vectors=2, layers=2, hidden=4)')
    assert not encoder.randomised and not encoder.standardised
    v = jnp.asarray(encoder.encode(graph))
    network = encoder.network(1, rngs=nnx.Rngs(0))
    given = jnp.ones((6, 1)), jnp.asarray(graph), jnp.ones(6, bool)
    found = jax.jit(lambda v: network(v, *given))
    np.testing.assert_array_equal(found(v), found(v * jnp.array([-1.0, 1.0])))


def test_a_model_reads_eigenvectors_as_they_are_and_learns():
    spec = 'signnet(vectors=3, layers=2, hidden=4)'
    batch = Triangles(features=spec).sample(np.random.default_rng(0), 2, (6, 8))
    vectors = batch['vectors'][..., 1:]
    np.testing.assert_allclose((vectors**2).sum(1), 1, atol=1e-5)  # not standardised
    cfg = TransformerConfig(
        vocab_size=0, channels=4, output_size=2, train_len=8, layers=1, width=8, heads=2,
        kind='encoder', encoding='nope()', pool='', features=spec,
    )  # fmt: skip
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    tok = tokens_of(batch)
    slopes = nnx.jit(nnx.grad(lambda model: (model(batch['vectors'], tok) ** 2).sum()))(model)
    named = [(jax.tree_util.keystr(p), a) for p, a in jax.tree_util.tree_leaves_with_path(slopes)]
    assert_all_learn({name: slope for name, slope in named if 'network' in name})
    turned = np.concatenate([batch['vectors'][..., :1], -vectors], axis=-1)
    np.testing.assert_allclose(model(turned, tok), model(batch['vectors'], tok), atol=1e-6)
