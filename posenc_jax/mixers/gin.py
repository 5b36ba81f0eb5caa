"""The layer of the graph isomorphism network."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.base.products import linear
from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer.layers import normal, zeros
from posenc_jax.layer.whole_mixer import WholeMixer
from posenc_jax.protocol.bounds import Count
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens


def check_edges(user: str, tok: Tokens) -> None:
    """Raises ValueError if the tokens are no nodes of a graph."""
    if 'adjacency' not in tok.feats:
        raise ValueError(
            f'{user} reads the edges of a graph, of which these tokens have none; use a task of '
            'graphs, or tok.with_feats(adjacency=edges[:, :, None]), edges [B, N, N]'
        )


def edges_of(user: str, tok: Tokens) -> Bool[Array, 'B N N']:
    """The adjacency of the nodes of each row, without those of padding; errors of `check_edges`."""
    check_edges(user, tok)
    edges = tok.feats['adjacency'][:, :, 0].astype(bool)
    if tok.valid is None:
        return edges
    return edges & tok.valid[:, :, None] & tok.valid[:, None, :]


def neighbour_sums(
    x: Float[Array, 'B N D'], edges: Bool[Array, '#B N N'], epsilon: Float[Array, '']
) -> Float[Array, 'B N D']:
    """`(1 + eps) x_i + sum over the neighbours j of i of x_j`, in float32 inside."""
    wide = x.astype(jnp.float32)
    near = jnp.einsum('bnm,bmd->bnd', edges.astype(jnp.float32), wide)
    return ((1 + epsilon) * wide + near).astype(x.dtype)


@register(
    'gin',
    kind='mixer',
    card=Card(
        name='GIN',
        example='gin()',
        use_when='You have graphs and want the plain baseline of a graph network.',
        needs_training=True,
    ),
)
class GIN(WholeMixer):
    """Sums the vectors of the neighbours of each node, for a row of nodes and its adjacency.

    `W_2 relu(W_1 ((1 + eps) h_i + sum_{j in N(i)} h_j) + b_1) + b_2`. Sums tell multisets of
    neighbours apart, which means and maxima do not. So the layer tells all graphs apart that
    refinement of colours (1-WL) does, and no others, unless the nodes have features of position.

    Differs from the paper: the layer stands in a pre-norm block of the transformer, with its
    residual connection and feed-forward network, and there is no batch norm.

    Args:
      hidden: units between the two linear maps; 0 = model_dim.
      learn_epsilon: train eps; else it stays 0.

    Raises:
      ValueError: at call, tokens that are no nodes of a graph.

    Reference: Xu et al., arXiv 1810.00826.

    Example:
      >>> import posenc_jax as pj
      >>> layer = GIN(model_dim=4, layers=1, rngs=nnx.Rngs(0))
      >>> edges = jnp.ones((1, 3, 3)) - jnp.eye(3)
      >>> nodes = pj.Tokens.of(length=3).with_feats(adjacency=edges[:, :, None])
      >>> layer.whole(jnp.ones((1, 3, 4)), nodes).shape
      (1, 3, 4)
    """

    def __init__(
        self,
        hidden: Count = 0,
        learn_epsilon: bool = True,
        model_dim: int = CONTEXT,
        layers: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        hidden, gain = hidden or model_dim, layers**-0.5
        self.w1 = normal(rngs, (model_dim, hidden), model_dim, ('width', 'mlp'))
        self.b1 = zeros((hidden,), ('mlp',))
        self.w2 = normal(rngs, (hidden, model_dim), hidden, ('mlp', 'width'), gain=gain)
        self.b2 = zeros((model_dim,), ('width',))
        epsilon = jnp.zeros((), jnp.float32)
        self.epsilon = nnx.Param(epsilon, axes=()) if learn_epsilon else None

    def whole(self, x, tok):
        epsilon = jnp.zeros(()) if self.epsilon is None else self.epsilon[...]
        h = neighbour_sums(x, edges_of('gin', tok), epsilon)
        h = jax.nn.relu(linear(h, self.w1[...]) + self.b1[...].astype(x.dtype))
        return linear(h, self.w2[...]) + self.b2[...].astype(x.dtype)
