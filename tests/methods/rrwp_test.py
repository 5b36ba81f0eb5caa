"""Random walk probabilities of pairs: powers by hand, two graphs with equal distances, the bias,
and what reaches attention from a task.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.features.graphs import make_graph_features
from posenc_jax.features.graphs.graphormer import graphormer_shortest_paths
from posenc_jax.features.graphs.rrwp import rrwp_probabilities
from posenc_jax.features.graphs.rwse import rwse_probabilities
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.model.inputs import tokens_of
from posenc_jax.lab.tasks.graphs import Triangles, random_graph
from posenc_jax.lab.tasks.graphs.named import complete, disjoint, from_edges
from posenc_jax.methods.rrwp import rrwp_bias, rrwp_network_bias
from tests.golden_files import golden, golden_suite

GOLDEN = golden('rrwp')['values']
PATH = from_edges(3, [(0, 1), (1, 2)]).astype(float)
GRAPH = random_graph(np.random.default_rng(0), 9, 0.4).astype(float)


def petersen(n, k):
    """The generalised Petersen graph (n, k): (10, 2) is the dodecahedron, (10, 3) Desargues'."""
    outer = [(i, (i + 1) % n) for i in range(n)]
    inner = [(n + i, n + (i + k) % n) for i in range(n)]
    return from_edges(2 * n, [*outer, *inner, *((i, n + i) for i in range(n))]).astype(float)


PAIR = {'dodecahedron': petersen(10, 2), 'desargues': petersen(10, 3)}


def with_walks(graph, steps):
    walks = rrwp_probabilities(graph, steps).astype(np.float32)
    return pj.Tokens.of(length=len(graph)).with_feats(graph_rrwp=walks[None, :, None])


def bias_of(encoding, tok):
    """What it adds to logits, by the doors: [N, n, n]."""
    zeros = jnp.zeros((1, tok.length, 2, 4))
    q, k, _, tq, tk = encoding.project(zeros, zeros, zeros, tok, tok)
    q, k = (jnp.swapaxes(a, 1, 2) for a in (q, k))
    return pair_logits(encoding, q, k, tq, tk)[0][0]


def made(steps, **options):
    given = ', '.join(f'{name}={value}' for name, value in {'steps': steps, **options}.items())
    return pj.make(f'rrwp({given})', heads=2, kv_heads=2, head_dim=4, rngs=nnx.Rngs(0))


def path_bias():
    encoding = made(3)
    encoding.weights[...] = jnp.array(GOLDEN['weights'])
    return bias_of(encoding, with_walks(PATH, 3))


test_golden = golden_suite(
    'rrwp',
    {
        'second_power': lambda: rrwp_probabilities(PATH, 3)[..., 2],
        'dodecahedron': lambda: rrwp_probabilities(PAIR['dodecahedron'], 7)[4, 4],
        'desargues': lambda: rrwp_probabilities(PAIR['desargues'], 7)[13, 13],
        'bias': path_bias,
    },
    atol=1e-7,
)


def test_rows_are_probabilities_and_walks_are_reversible():
    graph = disjoint(GRAPH, complete(1)).astype(float)
    walks, degrees = rrwp_probabilities(graph, 6), graph.sum(1)
    joined = degrees > 0
    np.testing.assert_allclose(walks[joined].sum(1), 1, atol=1e-12)
    assert not walks[9, :, 1:].any() and walks[9, 9, 0] == 1  # the isolated node
    weighted = degrees[:, None, None] * walks
    np.testing.assert_allclose(weighted, weighted.swapaxes(0, 1), atol=1e-12)
    assert np.abs(walks - walks.swapaxes(0, 1)).max() > 0.1
    assert rrwp_probabilities(graph, 1).shape == (10, 10, 1)


def test_the_features_of_nodes_are_1_and_then_those_of_rwse():
    found = make_graph_features('rrwp(steps=6)').encode(GRAPH)
    assert (found[:, 0] == 1).all()
    np.testing.assert_allclose(found[:, 1:], rwse_probabilities(GRAPH, 5), atol=1e-7)


def test_walks_separate_two_graphs_that_distances_do_not():
    """From K = 6 on, which has the fifth power. All nodes of both graphs look alike."""
    one, other = PAIR.values()
    for graph in PAIR.values():
        distance = graphormer_shortest_paths(graph)[0]
        counts = [np.bincount(row).tolist() for row in distance]
        assert counts == [[1, 3, 6, 6, 3, 1]] * 20
    profile = lambda graph, steps: np.sort(rrwp_probabilities(graph, steps).ravel())
    np.testing.assert_allclose(profile(one, 3), profile(other, 3), atol=1e-12)
    returns = lambda graph, steps: np.diagonal(rrwp_probabilities(graph, steps)).T
    np.testing.assert_allclose(returns(one, 5), returns(other, 5), atol=1e-12)
    assert np.abs(returns(one, 6) - returns(other, 6)).min(0)[5] > 0.02


def test_the_bias_is_that_of_a_loop_over_pairs():
    walks = rrwp_probabilities(GRAPH, 4)
    tok = with_walks(GRAPH, 4)
    linear, network = made(4), made(4, hidden=3)
    network.b1[...] = jnp.linspace(-0.2, 0.2, 6).reshape(2, 3)
    w, w1, b1, w2 = (
        np.asarray(a[...], np.float64) for a in (linear.weights, network.w1, network.b1, network.w2)
    )
    for encoding, of_pair in (
        (linear, lambda h, r: w[h] @ r),
        (network, lambda h, r: w2[h] @ np.maximum(r @ w1[h] + b1[h], 0)),
    ):
        expected = [
            [[of_pair(h, walks[i, j]) for j in range(9)] for i in range(9)] for h in range(2)
        ]
        np.testing.assert_allclose(bias_of(encoding, tok), expected, atol=1e-5)
    rows = jnp.asarray(walks, jnp.float32)[None]
    assert rrwp_bias(rows, linear.weights[...]).shape == (1, 9, 2, 9)
    given = (network.w1[...], network.b1[...], network.w2[...])
    assert rrwp_network_bias(rows, *given).shape == (1, 9, 2, 9)


@pytest.fixture(scope='module')
def model():
    cfg = TransformerConfig(
        vocab_size=0, channels=4, output_size=2, train_len=8, layers=1, width=8, heads=2,
        kind='encoder', encoding='rrwp(steps=3)', pool='', features='rrwp(steps=3)',
    )  # fmt: skip
    return Transformer(cfg, rngs=nnx.Rngs(0))


def test_a_task_gives_the_walks_to_attention(model):
    """Relabelled nodes have relabelled results; padding changes none; walks change them."""
    task = Triangles(features='rrwp(steps=3)')
    batch = task.sample(np.random.default_rng(0), 2, (6, 8))
    assert batch['graph_rrwp'].shape == (2, 8, 8, 3)
    for row, edges, valid in zip(batch['graph_rrwp'], batch['adjacency'], batch['valid']):
        n = valid.sum()
        walks = rrwp_probabilities(edges[:n, :n].astype(float), 3)
        np.testing.assert_allclose(row[:n, :n], walks, atol=1e-7)
        assert not row[n:].any() and not row[:, n:].any()
    # All nodes of a regular graph look alike, so they get vectors of their own.
    batch['vectors'] = np.random.default_rng(1).standard_normal((2, 8, 4), np.float32)
    run = jax.jit(lambda batch: model(batch['vectors'], tokens_of(batch)))
    found = run(batch)
    order = np.array([[3, 0, 5, 1, 4, 2, *range(6, 8)]] * 2)
    at = lambda a: np.take_along_axis(a, order.reshape(2, 8, *[1] * (a.ndim - 2)), axis=1)
    turned = {name: at(batch[name]) for name in ('vectors', 'valid', 'adjacency', 'graph_rrwp')}
    for name in ('adjacency', 'graph_rrwp'):
        turned[name] = at(turned[name].swapaxes(1, 2)).swapaxes(1, 2)
    np.testing.assert_allclose(run(turned), at(np.asarray(found)), atol=2e-5)
    noise = np.where(batch['valid'][:, None, :, None], batch['graph_rrwp'], 7.0)
    np.testing.assert_allclose(run({**batch, 'graph_rrwp': noise})[0], found[0], atol=1e-6)
    assert np.abs(run({**batch, 'graph_rrwp': 3 * batch['graph_rrwp']}) - found).max() > 1e-4


def test_wrong_walks_are_refused():
    encoding, tok = made(3), with_walks(GRAPH, 3)
    message = "reads the feature 'graph_rrwp' of a graph, and these tokens have none; .*steps=3"
    with pytest.raises(ValueError, match=message):
        bias_of(encoding, pj.Tokens.of(length=3))
    with pytest.raises(ValueError, match=r'reads walks of steps=3, .*got \(1, 9, 9, 2\)'):
        bias_of(encoding, with_walks(GRAPH, 2))
    few = tok.without_feats().with_feats(graph_rrwp=tok.feats['graph_rrwp'][:, :, :, :7])
    with pytest.raises(ValueError, match='rrwp: node 8 is not in 0 .. 6'):
        bias_of(encoding, few)
    found = jax.jit(lambda tok: bias_of(encoding, tok))(few)
    assert jnp.isnan(found[:, :, 7:]).all() and not jnp.isnan(found[:, :, :7]).any()
    with pytest.raises(ValueError, match='parameters of 2 heads, the queries have 3'):
        three = jnp.zeros((1, 9, 3, 4))
        encoding.project(three, three, three, tok, tok)
