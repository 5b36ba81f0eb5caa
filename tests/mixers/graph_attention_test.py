"""Attention among the nodes of a graph: over edges and with a bias for them, by another
computation, and a choice that does not exist.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.layer.projections import Projections
from posenc_jax.mixers.graph_attention import GraphAttention
from posenc_jax.protocol.tokens import Tokens
from tests.golden_files import golden

GOLDEN = golden('graph_attention')
SIZES = dict(model_dim=4, heads=2, kv_heads=2, head_dim=2, layers=1)


@pytest.mark.parametrize('edges, expected', [('mask', 'masked'), ('bias', 'biased')])
def test_a_layer_by_hand(edges, expected, monkeypatch):
    read = lambda name: jnp.asarray([GOLDEN[name]], jnp.float32)
    monkeypatch.setattr(Projections, 'qkv', lambda self, x: tuple(read(name) for name in 'qkv'))
    monkeypatch.setattr(Projections, 'output', lambda self, out: out)
    adjacency = np.zeros((1, 4, 4), np.float32)
    for i, j in GOLDEN['edges']:
        adjacency[0, i, j] = adjacency[0, j, i] = 1
    layer = GraphAttention(edges=edges, **SIZES, rngs=nnx.Rngs(0))
    if layer.bias is not None:
        layer.bias[...] = jnp.asarray(GOLDEN['bias'], jnp.float32)
    nodes = Tokens.of(length=4).with_feats(adjacency=adjacency[:, :, None])
    out = layer.whole(jnp.zeros((1, 4, 4)), nodes)
    np.testing.assert_allclose(out, read(expected), atol=1e-5)


def test_one_key_head_for_two_query_heads_is_two_equal_ones():
    one = GraphAttention(**{**SIZES, 'kv_heads': 1}, rngs=nnx.Rngs(0))
    two = GraphAttention(**SIZES, rngs=nnx.Rngs(1))
    for name in ('w_q', 'w_k', 'w_v', 'w_out'):
        weights = getattr(one.projections, name)[...]
        if name in ('w_k', 'w_v'):
            weights = jnp.repeat(weights, 2, axis=1)
        getattr(two.projections, name)[...] = weights
    edges = (jnp.ones((3, 3)) - jnp.eye(3))[None]
    tok = Tokens.of(length=3).with_feats(adjacency=edges[:, :, None])
    x = jnp.linspace(-1, 1, 12).reshape(1, 3, 4)
    np.testing.assert_allclose(one.whole(x, tok), two.whole(x, tok), atol=1e-6)
