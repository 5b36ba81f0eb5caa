"""Attention among the nodes of a graph: over edges alone, or with a bias for edges."""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool

from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer.projections import Projections
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.layer.whole_mixer import WholeMixer
from posenc_jax.mixers.gin import check_edges
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens


class Edges(Encoding):
    """What the edges of a graph do to attention; the tokens have the feature 'adjacency'.

    Args:
      bias: [heads, 3], of pairs without an edge, of those with one, and of a node with itself; None
        hides the pairs without an edge.
    """

    def __init__(self, bias: nnx.Param | None):
        self.bias = bias

    def mask(self, tq, tk):
        if self.bias is not None:
            return None
        joined, itself = _pairs(tq, tk)
        return (joined | itself)[:, None]

    def logits(self, s, q, k, tq, tk, seen, carry):
        if self.bias is None:
            return s, carry
        joined, itself = _pairs(tq, tk)
        kind = jnp.where(itself, 2, joined.astype(jnp.int32))
        return s + jnp.moveaxis(jnp.take(self.bias[...], kind, axis=1), 0, 1), carry


def _pairs(tq: Tokens, tk: Tokens) -> tuple[Bool[Array, 'B T S'], Bool[Array, 'B T S']]:
    """Which query and key are joined by an edge, and which are the same node."""
    rows = tq.feats['adjacency'][:, :, 0].astype(bool)
    itself = tq.index[:, :, None] == tk.index[:, None, :]
    places = jnp.broadcast_to(tk.index[:, None, :], (len(rows), *itself.shape[1:]))
    joined = jnp.take_along_axis(rows, places, axis=2, mode='clip')
    return joined, jnp.broadcast_to(itself, joined.shape)


@register(
    'graph_attention',
    kind='mixer',
    card=Card(
        name='Graph attention',
        example='graph_attention()',
        use_when='You have graphs with codes of nodes and want a transformer on them.',
        needs_training=True,
    ),
)
class GraphAttention(WholeMixer):
    """The attention of a graph transformer, for a row of nodes and its adjacency.

    `softmax_(j in N(i) or i)(q_i . k_j / sqrt(H))`: with `edges='mask'` a node attends to its
    neighbours and itself, as in the paper. With `edges='bias'` it attends to all nodes of its
    graph, and each head has a trained bias for pairs that an edge joins, for other pairs, and for
    the node itself (as Graphormer, arXiv 2106.05234, with distances up to 1).

    Differs from the paper: the layer stands in a pre-norm block, and there are no edge features.

    Args:
      edges: 'mask' or 'bias'.

    Raises:
      ValueError: at call, tokens that are no nodes of a graph.

    Reference: Dwivedi and Bresson, arXiv 2012.09699.

    Example:
      >>> import posenc_jax as pj
      >>> sizes = dict(model_dim=8, heads=2, kv_heads=2, head_dim=4, layers=1)
      >>> layer = GraphAttention(**sizes, rngs=nnx.Rngs(0))
      >>> edges = jnp.ones((1, 3, 3)) - jnp.eye(3)
      >>> nodes = pj.Tokens.of(length=3).with_feats(adjacency=edges[:, :, None])
      >>> layer.whole(jnp.ones((1, 3, 8)), nodes).shape
      (1, 3, 8)
    """

    def __init__(
        self,
        edges: Literal['mask', 'bias'] = 'mask',
        model_dim: int = CONTEXT,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        layers: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.edges = edges
        self.projections = Projections(
            model_dim, heads, kv_heads, head_dim, gain=(2 * layers) ** -0.5, rngs=rngs
        )
        bias = jnp.zeros((heads, 3), jnp.float32)  # no edge, an edge, the node itself
        self.bias = nnx.Param(bias, axes=('heads', None)) if edges == 'bias' else None

    def whole(self, x, tok):
        check_edges('graph_attention', tok)
        q, k, v = self.projections.qkv(x)
        return self.projections.output(sharded_attend(Edges(self.bias), q, k, v, tok, tok))
