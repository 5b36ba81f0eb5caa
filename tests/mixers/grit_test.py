"""GRIT's attention: a loop over pairs, the layer by its equations, the stream of pairs, relabelled
nodes, and what is refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.features.graphs.rrwp import rrwp_probabilities
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.model.inputs import tokens_of
from posenc_jax.lab.tasks.graphs import Triangles, random_graph
from posenc_jax.mixers.grit import Grit, grit_attention, grit_signed_root
from tests.golden_files import golden, golden_suite

GOLDEN = golden('grit')
SIZES = dict(model_dim=6, heads=2, head_dim=3, layers=1)
GRAPH = random_graph(np.random.default_rng(1), 7, 0.4).astype(np.float32)


def attention_by_loop(q, k, v, scale, shift, w_a, w_e, seen):
    """y [n, N, H] and e [n, n, N, H], pair by pair in float64."""
    q, k, v, scale, shift, w_a, w_e = (
        np.asarray(a, np.float64) for a in (q, k, v, scale, shift, w_a, w_e)
    )
    (n, heads, _), seen = q.shape, np.asarray(seen)
    y, pairs = np.zeros_like(v), np.zeros_like(scale)
    for h in range(heads):
        for i in range(n):
            logits = {}
            for j in range(n):
                z = (q[i, h] + k[j, h]) * scale[i, j, h]
                z = np.array([x**0.5 if x > 0 else -((-x) ** 0.5) for x in z])
                pairs[i, j, h] = np.maximum(z + shift[i, j, h], 0)
                if seen[i, j]:
                    logits[j] = min(max(w_a[h] @ pairs[i, j, h], -5), 5)
            total = sum(np.exp(s) for s in logits.values())
            for j, s in logits.items():
                y[i, h] += np.exp(s) / total * (v[j, h] + pairs[i, j, h] @ w_e[h])
    return y, pairs


NAMES = ('q', 'k', 'v', 'scale', 'shift', 'w_a', 'w_e')


def of_golden(which):
    given = [np.asarray(GOLDEN[name], np.float32) for name in NAMES]
    nodes = [jnp.asarray(a)[None] for a in given[:5]]
    seen = jnp.asarray(GOLDEN['seen'], bool)[None]
    y, pairs = grit_attention(*nodes, *map(jnp.asarray, given[5:]), seen)
    loop = attention_by_loop(*given, GOLDEN['seen'])[which]
    np.testing.assert_allclose((y, pairs)[which][0], loop, atol=1e-5)
    return (y, pairs)[which][0]


test_golden = golden_suite(
    'grit', {'y': lambda: of_golden(0), 'pairs': lambda: of_golden(1)}, atol=2e-6
)


def nodes_of(graph, steps=4, **known):
    walks = rrwp_probabilities(graph.astype(float), steps).astype(np.float32)
    tok = pj.Tokens.of(length=len(graph), **known)
    return tok.with_feats(
        adjacency=jnp.asarray(graph)[None, :, None], graph_rrwp=jnp.asarray(walks)[None, :, None]
    )


@pytest.fixture(scope='module')
def layer():
    layer = Grit(pair_width=5, **SIZES, rngs=nnx.Rngs(0))
    layer.theta_2[...] = jnp.linspace(-1, 1, 6).reshape(2, 3)
    return layer


X = jax.random.normal(jax.random.key(0), (1, 7, 6))


def test_the_layer_is_its_equations(layer):
    tok = nodes_of(GRAPH)
    stream = layer.begin_stream(tok)
    np.testing.assert_allclose(stream[0, :, :, :4], tok.feats['graph_rrwp'][0, :, 0], atol=0)
    assert stream.shape == (1, 7, 7, 5) and not stream[..., 4].any()
    out, after = jax.jit(lambda x, s: layer.whole(x, tok, s))(X, stream)
    w = {
        name: np.asarray(getattr(layer, name)[...], np.float64)
        for name in ('w_q', 'w_k', 'w_v', 'w_scale', 'w_shift', 'w_a', 'w_e', 'w_out', 'w_pairs')
    }
    x, e = np.asarray(X[0], np.float64), np.asarray(stream[0], np.float64)
    of_nodes = [np.einsum('nd,dah->nah', x, w[name]) for name in ('w_q', 'w_k', 'w_v')]
    of_pairs = [np.einsum('ijd,dah->ijah', e, w[name]) for name in ('w_scale', 'w_shift')]
    seen = np.ones((7, 7), bool)
    y, pairs = attention_by_loop(*of_nodes, *of_pairs, w['w_a'], w['w_e'], seen)
    theta_1, theta_2 = (np.asarray(a[...], np.float64) for a in (layer.theta_1, layer.theta_2))
    y = y * (theta_1 + np.log(1 + GRAPH.sum(1))[:, None, None] * theta_2)
    np.testing.assert_allclose(out[0], y.reshape(7, -1) @ w['w_out'], atol=1e-4)
    np.testing.assert_allclose(after[0], e + pairs.reshape(7, 7, -1) @ w['w_pairs'], atol=1e-4)


def test_relabelled_nodes_and_padding(layer):
    """Nodes in another order, and behind a graph that fills up the row, have the same results."""
    order = np.random.default_rng(0).permutation(7)
    run = jax.jit(lambda x, tok: layer.whole(x, tok, layer.begin_stream(tok)))
    out, stream = run(X, nodes_of(GRAPH))
    turned, pairs = run(X[:, order], nodes_of(GRAPH[np.ix_(order, order)]))
    np.testing.assert_allclose(turned, out[:, order], atol=1e-5)
    np.testing.assert_allclose(pairs, stream[:, order][:, :, order], atol=1e-5)
    # Two real nodes, an edge, in front of others that are padding.
    few = np.zeros((7, 7), np.float32)
    few[:2, :2] = [[0, 1], [1, 0]]
    valid = np.arange(7)[None] < 2
    for filler in (0.0, 9.0):
        x = jnp.where(valid[..., None], X, filler)
        padded, _ = run(x, nodes_of(few, valid=valid))
        alone, _ = run(X[:, :2], nodes_of(few[:2, :2]))
        np.testing.assert_allclose(padded[:, :2], alone, atol=1e-5)
        assert np.isfinite(padded).all()


def test_features_of_edges_follow_the_walks(layer):
    """Two features beside walks of three steps; nodes in another order have the same results."""
    edges = np.random.default_rng(2).standard_normal((7, 7, 2)).astype(np.float32)

    def run(order):
        graph, own = GRAPH[np.ix_(order, order)], edges[np.ix_(order, order)]
        tok = nodes_of(graph, steps=3).with_feats(graph_edges=own[None, :, None])
        stream = layer.begin_stream(tok)
        return stream, layer.whole(X[:, order], tok, stream)[0]

    order = np.random.default_rng(0).permutation(7)
    stream, out = run(np.arange(7))
    np.testing.assert_array_equal(stream[0, ..., 3:], edges * GRAPH[..., None])
    plain = nodes_of(GRAPH, steps=3)
    np.testing.assert_array_equal(stream[..., :3], layer.begin_stream(plain)[..., :3])
    np.testing.assert_allclose(run(order)[1], out[:, order], atol=1e-5)
    assert np.abs(out - layer.whole(X, plain, layer.begin_stream(plain))[0]).max() > 1e-3


def test_packed_graphs_do_not_see_each_other(layer):
    """The walks of a node are those to the nodes of its own graph, by their ranks."""
    sizes = (4, 3)
    graphs = [GRAPH[:4, :4], np.float32([[0, 1, 1], [1, 0, 0], [1, 0, 0]])]
    walks, edges, start = np.zeros((7, 7, 4), np.float32), np.zeros((7, 7), np.float32), 0
    for graph, n in zip(graphs, sizes):
        rows = slice(start, start + n)
        edges[rows, rows] = graph
        walks[rows, :n] = rrwp_probabilities(graph.astype(float), 4)
        start += n
    tok = pj.Tokens.of(segment=np.repeat([[0, 1]], sizes, axis=1))
    tok = tok.with_feats(adjacency=edges[None, :, None], graph_rrwp=walks[None, :, None])
    run = jax.jit(lambda x, tok: layer.whole(x, tok, layer.begin_stream(tok))[0])
    packed = run(X, tok)
    for graph, rows in zip(graphs, (slice(0, 4), slice(4, 7))):
        alone = run(X[:, rows], nodes_of(graph))
        np.testing.assert_allclose(packed[:, rows], alone, atol=1e-5)


def test_queries_read_the_walks_that_begin_at_them(layer):
    """Only node 0 differs in what it sees if the walks from node 0 are others."""
    tok = nodes_of(GRAPH)
    other = tok.feats['graph_rrwp'].at[0, 0].multiply(2.0)
    run = jax.jit(lambda tok: layer.whole(X, tok, layer.begin_stream(tok))[0])
    feats = {'adjacency': tok.feats['adjacency'], 'graph_rrwp': other}
    change = np.abs(run(tok.without_feats().with_feats(**feats)) - run(tok)).max((0, 2))
    assert change[0] > 1e-4 and not change[1:].any()


def test_the_pairs_flow_through_a_model_whose_weights_learn():
    batch = Triangles(features='rrwp(steps=3)').sample(np.random.default_rng(0), 2, (6, 8))
    cfg = TransformerConfig(
        vocab_size=0, channels=4, output_size=2, train_len=8, layers=2, width=8, heads=2,
        kind='encoder', encoding='', pattern=('grit()',), pool='', features='rrwp(steps=3)',
    )  # fmt: skip
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    tok = tokens_of(batch)
    loss = nnx.jit(nnx.grad(lambda model: (model(batch['vectors'], tok) ** 2).sum()))
    own = 0
    for path, slope in jax.tree_util.tree_leaves_with_path(loss(model)):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(slope).all(), name
        if 'own_mixer' in name:
            most = np.abs(slope).reshape(2, -1).max(1)  # of each layer
            # Nobody reads the pairs behind the last layer.
            assert (most > 0).all() or ('w_pairs' in name and most[0] > 0), name
            own += 1
    assert own == 11


def test_signed_root_has_finite_derivatives():
    x = jnp.array([-4.0, -0.25, 0.0, 2.25])
    np.testing.assert_allclose(grit_signed_root(x), [-2, -0.5, 0, 1.5], atol=1e-7)
    slopes = jax.vmap(jax.grad(grit_signed_root))(x)
    np.testing.assert_allclose(slopes, [0.25, 1.0, 0.0, 1 / 3], atol=1e-6)


def test_what_is_refused():
    layer = Grit(pair_width=2, **SIZES, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match='pair_width=2 for pairs, which is less than the 4 steps'):
        layer.begin_stream(nodes_of(GRAPH))
    edges = jnp.zeros((1, 7, 1, 7, 2))
    with pytest.raises(ValueError, match='less than the 1 steps .* and the 2 features of an edge'):
        layer.begin_stream(nodes_of(GRAPH, steps=1).with_feats(graph_edges=edges))
    with pytest.raises(ValueError, match="grit reads the feature 'graph_rrwp' of a graph"):
        layer.begin_stream(pj.Tokens.of(length=3))
    with pytest.raises(ValueError, match='grit reads the edges of a graph'):
        layer.whole(X, pj.Tokens.of(length=7), jnp.zeros((1, 7, 7, 2)))
