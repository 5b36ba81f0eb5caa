"""Attention among the nodes of a graph: over edges alone, or with a bias for edges."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.core.registry import Card, Promises, check_choice, register
from posenc_jax.core.spec import CONTEXT
from posenc_jax.mixers.gin import edges_of
from posenc_jax.model.projections import Projections
from posenc_jax.model.whole_mixer import WholeMixer

HIDDEN = -1e30


def graph_attention(
    q: Float[Array, 'B N heads H'],
    k: Float[Array, 'B N heads H'],
    v: Float[Array, 'B N heads H'],
    bias: Float[Array, '#B #heads #N #N'],
    seen: Bool[Array, '#B N N'],
) -> Float[Array, 'B N heads H']:
    """`softmax(q_i . k_j / sqrt(H) + bias_ij)` over the j that i sees; each node sees itself.

    Example:
      >>> one = jnp.ones((1, 2, 1, 1))
      >>> v = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
      >>> alone = jnp.zeros((1, 2, 2), bool)
      >>> graph_attention(one, one, v, jnp.zeros((1, 1, 2, 2)), alone).ravel().tolist()
      [1.0, 3.0]
    """
    logits = jnp.einsum('bihd,bjhd->bhij', q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5 + bias
    seen = seen | jnp.eye(seen.shape[-1], dtype=bool)
    weights = jax.nn.softmax(jnp.where(seen[:, None], logits, HIDDEN), axis=-1)
    return jnp.einsum('bhij,bjhd->bihd', weights.astype(v.dtype), v)


@register(
    'graph_attention',
    kind='mixer',
    card=Card(
        name='Graph attention',
        title='A Generalization of Transformer Networks to Graphs',
        arxiv='2012.09699',
        door='none',
        equation='softmax_(j in N(i) or i)(q_i . k_j / sqrt(H)), or over all j with + b_edge',
        source='graphdeeplearning/graphtransformer',
        authors='Dwivedi, Vijay Prakash and Bresson, Xavier',
        year=2021,
        example='graph_attention()',
        promises=Promises(needs_training=True),
    ),
)
class GraphAttention(WholeMixer):
    """The attention of a graph transformer, for a row of nodes and its adjacency.

    With `edges='mask'` a node attends to its neighbours and itself, as in the paper. With
    `edges='bias'` it attends to all nodes of its graph, and each head has a trained bias for pairs
    that an edge joins, for other pairs, and for the node itself (as Graphormer, arXiv 2106.05234,
    with distances up to 1). Its logits are a whole N x N array, as the adjacency is.

    Differs from the paper: the layer stands in a pre-norm block, and there are no edge features.

    Args:
      edges: 'mask' or 'bias'.
      model_dim, heads, kv_heads, head_dim, layers: from the model.
      rngs: draws the parameters.

    Raises:
      SpecError: an unknown choice.
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
        self.edges = check_choice('graph_attention edges', edges, ('mask', 'bias'))
        self.projections = Projections(
            model_dim,
            heads,
            kv_heads,
            head_dim,
            bias='none',
            gain=(2 * layers) ** -0.5,
            stack=(),
            rngs=rngs,
        )
        bias = jnp.zeros((heads, 3), jnp.float32)  # no edge, an edge, the node itself
        self.bias = nnx.Param(bias, axes=('heads', None)) if edges == 'bias' else None

    def whole(self, x, tok):
        joined, itself = edges_of('graph_attention', tok), jnp.eye(x.shape[1], dtype=bool)
        bias, seen = jnp.zeros((1, 1, 1, 1)), joined
        if self.bias is not None:
            kind = jnp.where(itself, 2, joined.astype(jnp.int32))
            bias = jnp.moveaxis(jnp.take(self.bias[...], kind, axis=1), 0, 1)
            valid = jnp.ones((1, x.shape[1]), bool) if tok.valid is None else tok.valid
            seen = jnp.broadcast_to(valid[:, None, :], joined.shape)
        q, k, v = self.projections.qkv(x)
        k, v = (jnp.repeat(a, q.shape[2] // a.shape[2], axis=2) for a in (k, v))
        return self.projections.output(graph_attention(q, k, v, bias, seen))
