"""The layer of the graph isomorphism network: sums over neighbours by another computation, and a
node without any.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from posenc_jax.mixers.gin import GIN, edges_of, neighbour_sums
from posenc_jax.protocol.tokens import Tokens
from tests.golden_files import golden

GOLDEN = golden('gin')


def test_a_layer_by_hand():
    edges = np.zeros((1, 4, 4), np.float32)
    for i, j in GOLDEN['edges']:
        edges[0, i, j] = edges[0, j, i] = 1
    layer = GIN(hidden=3, model_dim=2, layers=1, rngs=nnx.Rngs(0))
    for name in ('w1', 'b1', 'w2', 'b2', 'epsilon'):
        getattr(layer, name)[...] = jnp.asarray(GOLDEN[name], jnp.float32)
    nodes = Tokens.of(length=4).with_feats(adjacency=edges[:, :, None])
    out = layer.whole(jnp.asarray([GOLDEN['x']], jnp.float32), nodes)
    np.testing.assert_allclose(out[0], GOLDEN['out'], atol=1e-5)


def test_a_node_without_neighbours_keeps_its_own_vector():
    alone = neighbour_sums(jnp.ones((1, 2, 3)), jnp.zeros((1, 2, 2), bool), jnp.full((), 0.5))
    np.testing.assert_allclose(alone, 1.5)


def test_no_edge_leads_to_padding_or_from_it():
    valid = np.array([[True, True, False]])
    nodes = Tokens.of(valid=valid).with_feats(adjacency=np.ones((1, 3, 1, 3)))
    np.testing.assert_array_equal(edges_of('gin', nodes)[0], np.outer(valid, valid))
