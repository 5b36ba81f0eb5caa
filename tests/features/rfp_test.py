"""Random feature propagation: by hand, orthonormal columns, power iteration, dependent columns, and
the learned operator.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.features.graphs import make_graph_features
from posenc_jax.features.graphs import rfp_learned as module
from posenc_jax.features.graphs.adjacency import graph_operator
from posenc_jax.features.graphs.rfp import positive_qr, rfp_features
from posenc_jax.lab.tasks.graphs import random_graph
from posenc_jax.lab.tasks.graphs.named import circulant, complete, disjoint, from_edges
from tests.golden_files import golden

GOLDEN = golden('rfp')['values']
PATH = from_edges(3, [(0, 1), (1, 2)]).astype(float)
GRAPH = random_graph(np.random.default_rng(7), 10, 0.4).astype(float)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize('operator', ['gcn', 'sym', 'rw', 'lap'])
def test_golden_operators(operator):
    np.testing.assert_allclose(graph_operator(PATH, operator), GOLDEN[operator], atol=1e-8)
    np.testing.assert_array_equal(graph_operator(PATH, 'adj'), PATH)


@pytest.mark.parametrize('normalise', ['qr', 'none', 'l2'])
def test_golden_steps(normalise):
    found = rfp_features(PATH, np.array(GOLDEN['x0']), 2, normalise)
    # The columns of A X are orthogonal here, so dividing them by their norms is enough.
    steps = GOLDEN['none' if normalise == 'none' else 'qr']
    np.testing.assert_allclose(found, np.hstack([GOLDEN['x0'], *steps]), atol=1e-8)


def gram_schmidt(y):
    q = np.zeros_like(y)
    for j in range(y.shape[1]):
        rest = y[:, j] - q[:, :j] @ (q[:, :j].T @ y[:, j])
        q[:, j] = rest / np.linalg.norm(rest)
    return q


@pytest.mark.parametrize('operator', ['gcn', 'adj', 'sym', 'rw', 'lap'])
def test_every_step_is_orthonormal(operator):
    """With a positive diagonal of R, Q is that of Gram and Schmidt."""
    spec = f'rfp(features=4, steps=5, operator={operator!r})'
    found = make_graph_features(spec).encode(GRAPH, np.random.default_rng(1))
    x = found.astype(np.float64).reshape(10, 6, 4).swapaxes(0, 1)
    np.testing.assert_array_equal(
        x[0].astype(np.float32),
        np.random.default_rng(1).standard_normal((10, 4)).astype(np.float32),
    )
    for before, after in zip(x, x[1:]):
        np.testing.assert_allclose(after.T @ after, np.eye(4), atol=1e-6)
        np.testing.assert_allclose(
            after, gram_schmidt(graph_operator(GRAPH, operator) @ before), atol=1e-4
        )


def test_columns_are_divided_by_their_norms():
    found = rfp_features(GRAPH, RNG.standard_normal((10, 3)), 4, 'l2').reshape(10, 5, 3)
    np.testing.assert_allclose(np.linalg.norm(found[:, 1:], axis=0), 1, atol=1e-12)
    assert np.abs(np.linalg.norm(found[:, 1:], axis=2) - 1).max() > 0.1  # not the rows
    alone = rfp_features(np.zeros((2, 2)), np.ones((2, 1)), 2, 'l2')
    assert alone.tolist() == [[1, 0, 0], [1, 0, 0]]


def errors(steps, r=3):
    """How far X_t is from the eigenvectors of the largest absolute eigenvalues, in the operator
    norm, and the ratio by which theory says that it comes nearer in a step.
    """
    s = graph_operator(GRAPH, 'gcn')
    values, vectors = np.linalg.eigh(s)
    order = np.argsort(-np.abs(values))
    top = vectors[:, order[:r]]
    x0 = np.random.default_rng(3).standard_normal((10, r))
    x = rfp_features(s, x0, max(steps)).reshape(10, -1, r)
    projectors = [x[:, t] @ x[:, t].T for t in steps]
    ratio = np.abs(values[order[r]] / values[order[r - 1]])
    return [np.linalg.norm(p - top @ top.T, 2) for p in projectors], ratio


def test_it_is_a_power_iteration():
    (early, middle, late), ratio = errors((16, 40, 64))
    assert early > middle > late
    np.testing.assert_allclose(np.log(late / middle) / 24, np.log(ratio), rtol=0.15)


def test_powers_grow_or_vanish_without_normalisation():
    spec = "rfp(features=2, steps=200, normalise='none', operator={!r})"
    with pytest.raises(
        ValueError, match=r'^Rfp\(features=2.*: features of up to .*e\+.* no numbers of float32'
    ):
        make_graph_features(spec.format('adj')).encode(GRAPH)
    found = make_graph_features(spec.format('rw')).encode(GRAPH)
    last = found.reshape(10, 201, 2)[:, -1]
    np.testing.assert_allclose(last, np.broadcast_to(last[:1], (10, 2)), rtol=1e-4)


def test_dependent_columns_have_an_order_free_basis():
    """A bipartite graph has pairs of eigenvalues, and a star almost only the eigenvalue 0."""
    for graph in (
        from_edges(6, [(0, i) for i in range(1, 6)]),
        disjoint(circulant(4), complete(1)),
    ):
        n = len(graph)
        s, x0 = graph_operator(graph.astype(float), 'adj'), RNG.standard_normal((n, n))
        found = rfp_features(s, x0, 5)
        for t in range(1, 6):
            q = found[:, t * n : (t + 1) * n]
            np.testing.assert_allclose(q.T @ q, np.eye(n), atol=1e-12)
        order = RNG.permutation(n)
        moved = rfp_features(s[np.ix_(order, order)], x0[order], 5)
        np.testing.assert_allclose(moved, found[order], atol=1e-5)


def test_small_graphs_are_filled_up_if_asked_for():
    spec = 'rfp(features=5, steps=2, pad=True)'
    found = make_graph_features(spec).encode(PATH, np.random.default_rng(1)).reshape(3, 3, 5)
    assert not found[..., 3:].any() and found[..., :3].all(-1).any()
    x0 = np.random.default_rng(1).standard_normal((3, 3))
    plain = rfp_features(graph_operator(PATH, 'gcn'), x0, 2).reshape(3, 3, 3)
    np.testing.assert_allclose(found[..., :3], plain, atol=1e-7)
    # Only QR needs as many nodes as features.
    wide = make_graph_features("rfp(features=5, steps=2, normalise='l2')").encode(PATH)
    assert wide.shape == (3, 15) and wide[:, 3:5].any()


def test_draws_are_independent_and_fixed_in_evaluation():
    encoder = make_graph_features('rfp(features=2, steps=1, draws=3)')
    found = encoder.encode_draws(GRAPH)
    assert found.shape == (3, 10, 4)
    np.testing.assert_array_equal(encoder.encode_draws(GRAPH), found)
    np.testing.assert_array_equal(encoder.encode(GRAPH, draw=2), found[2])
    drawn = encoder.encode_draws(GRAPH, np.random.default_rng(0))
    for one, other in ((found[0], found[1]), (drawn[0], drawn[1]), (drawn[1], found[1])):
        assert np.abs(one - other).max() > 0.1


NODES = jnp.asarray(RNG.standard_normal((10, 4)), jnp.float32)
X0 = jnp.asarray(RNG.standard_normal((10, 3)), jnp.float32)


@pytest.fixture(scope='module')
def learned():
    """The module, and its compiled call on graphs of 10 rows, of which some may be padding."""
    network = module.LearnedPropagation(4, 3, 3, key_width=5, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(network)
    run = jax.jit(lambda state, *args: nnx.merge(graphdef, state)(*args))
    return network, state, run


def test_attention_among_neighbours_by_a_loop(learned):
    network, _, _ = learned
    w_q, w_k = (np.asarray(w[...], np.float64) for w in (network.w_q, network.w_k))
    wanted = np.zeros((10, 10))
    for i in range(10):
        near = [i, *np.flatnonzero(GRAPH[i])]
        scores = np.array([(NODES[i] @ w_q) @ (NODES[j] @ w_k) / 5**0.5 for j in near])
        wanted[i, near] = np.exp(scores) / np.exp(scores).sum()
    adjacency, valid = jnp.asarray(GRAPH, bool), jnp.ones(10, bool)
    found = module.neighbour_attention(NODES, network.w_q[...], network.w_k[...], adjacency, valid)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    # Equal nodes: the mean over a node and its neighbours.
    equal = module.neighbour_attention(
        jnp.ones((10, 4)), network.w_q[...], network.w_k[...], adjacency, valid
    )
    closed = (GRAPH + np.eye(10)) / (GRAPH.sum(1) + 1)[:, None]
    np.testing.assert_allclose(equal, closed, atol=1e-6)


@pytest.mark.parametrize('normalise', ['qr', 'l2', 'none'])
def test_the_trained_form_agrees_with_the_host(normalise):
    s = graph_operator(GRAPH, 'gcn')
    shifted = s + 1e-3 * np.eye(10) if normalise == 'qr' else s
    wanted = rfp_features(shifted, np.asarray(X0, np.float64), 3, normalise)
    found = module.propagate_learned(jnp.asarray(s, jnp.float32), X0, 3, normalise)
    np.testing.assert_allclose(found, wanted, atol=3e-5)


def test_the_learned_operator(learned):
    network, state, run = learned
    adjacency, order = jnp.asarray(GRAPH, bool), RNG.permutation(10)
    turned = adjacency[order][:, order]
    both = [jnp.stack(pair) for pair in ((X0, X0[order]), (NODES, NODES[order]))]
    found = run(state, *both, jnp.stack([adjacency, turned]), jnp.ones((2, 10), bool))
    assert (found.shape, network.width) == ((2, 10, 12), 12)
    np.testing.assert_allclose(found[1], found[0, order], atol=2e-4)


def test_padding_of_the_learned_operator(learned):
    """A batch of a graph of 6 nodes, and one of 2, which has fewer nodes than features."""
    network, state, run = learned
    n = jnp.array([6, 2])
    valid = jnp.arange(10) < n[:, None]
    x0 = X0 * valid[..., None] * (jnp.arange(3) < n[:, None, None])
    near = jnp.asarray([GRAPH] * 2) > 0  # edges to padding are ignored
    found = run(state, x0, jnp.stack([NODES] * 2), near, valid)
    for n, x, start, own in zip((6, 2), np.asarray(found), np.asarray(x0, np.float64), near):
        assert not x[n:].any()
        r, x = min(n, 3), x[:n].reshape(n, 4, 3)
        assert not x[..., r:].any()
        s = module.neighbour_attention(
            NODES[:n], network.w_q[...], network.w_k[...], own[:n, :n], jnp.ones(n, bool)
        )
        s = np.asarray(s, np.float64) + 1e-3 * np.eye(n)
        plain = rfp_features(s, start[:n, :r], 3)
        np.testing.assert_allclose(x[..., :r].reshape(n, -1), plain, atol=1e-3)


def test_the_weights_of_the_learned_operator_have_gradients(learned):
    """Also for equal nodes of a clique: the rows of S are equal there, and its rank is 1."""
    _, state, run = learned
    mix = jax.random.normal(jax.random.key(1), (2, 10, 12))
    nodes = jnp.stack([NODES, jnp.ones((10, 4))])
    near = jnp.stack([jnp.asarray(GRAPH, bool), jnp.asarray(complete(10))])
    loss = lambda state, mix: (
        run(state, jnp.stack([X0] * 2), nodes, near, jnp.ones((2, 10), bool)) * mix
    ).sum()
    slope = jax.jit(jax.grad(loss))
    for slopes in map(jax.tree.leaves, (slope(state, mix), slope(state, mix.at[0].set(0)))):
        assert all(np.isfinite(one).all() for one in slopes)
    assert all(np.abs(one).max() > 1e-3 for one in jax.tree.leaves(slope(state, mix)))


def test_the_learned_encoder_gives_its_start():
    encoder = make_graph_features("rfp(features=3, steps=4, operator='learned', key_width=2)")
    assert encoder.width == 3
    np.testing.assert_array_equal(
        encoder.encode(GRAPH, np.random.default_rng(2)),
        np.random.default_rng(2).standard_normal((10, 3)).astype(np.float32),
    )
    network = encoder.network(7, rngs=nnx.Rngs(0))
    assert network.width == 15 and network.w_q.shape == (7, 2)
    assert make_graph_features('rfp()').network(7, rngs=nnx.Rngs(0)) is None
    assert positive_qr(np.array([[-3.0], [4.0]])).round(6).tolist() == [[-0.6], [0.8]]


def test_without_steps_the_random_features_are_left():
    encoder = make_graph_features('rfp(features=3, steps=0)')
    assert encoder.width == 3
    found = encoder.encode(GRAPH, np.random.default_rng(1))
    expected = np.random.default_rng(1).standard_normal((len(GRAPH), 3))
    np.testing.assert_array_equal(found, expected.astype(found.dtype))
