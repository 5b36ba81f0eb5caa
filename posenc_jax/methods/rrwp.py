"""A bias of relative random walk probabilities, for the nodes of a graph."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.methods.node_pairs import NodePairBias
from posenc_jax.protocol.bounds import CONTEXT, Count, Size
from posenc_jax.protocol.encoding import drawn_uniform
from posenc_jax.protocol.registry import Card, register


def rrwp_bias(
    walks: Float[Array, '#B L n K'], weights: Float[Array, 'heads K']
) -> Float[Array, '#B L heads n']:
    """`w_h . R_ij` of every node i with every node j, float32.

    Example:
      >>> rrwp_bias(jnp.array([[[[1.0, 0.0], [0.0, 0.5]]]]), jnp.array([[3.0, 4.0]])).tolist()
      [[[[3.0, 2.0]]]]
    """
    return jnp.einsum('blnk,hk->blhn', walks, weights, precision=jax.lax.Precision.HIGHEST)


def rrwp_network_bias(
    walks: Float[Array, '#B L n K'],
    w1: Float[Array, 'heads K M'],
    b1: Float[Array, 'heads M'],
    w2: Float[Array, 'heads M'],
) -> Float[Array, '#B L heads n']:
    """`w2_h . relu(R_ij W1_h + b1_h)`, a network for each head, float32."""
    precise = jax.lax.Precision.HIGHEST
    hidden = jnp.einsum('blnk,hkm->blhnm', walks, w1, precision=precise)
    hidden = jax.nn.relu(hidden + b1[:, None])
    return jnp.einsum('blhnm,hm->blhn', hidden, w2, precision=precise)


@register(
    'rrwp',
    kind='encoding',
    card=Card(name='RRWP bias', example='rrwp(steps=6)', relative=True, needs_training=True),
)
class RRWP(NodePairBias):
    """Adds a trained function of random walk probabilities to the logits, for nodes of a graph.

    `logit_ij = q_i . k_j / sqrt(H) + w_h . R_ij`, `R_ij = [I, P, P^2, ..., P^(K-1)]_ij`,
    `P = D^-1 A`: query i sees key j with the probabilities of walks from i to j. With `hidden` a
    small network of each head takes the place of w_h. A task has the features
    `features='rrwp(steps=K)'`, which also give R_ii to the nodes. Differs from the paper: its
    attention is the layer `grit`; this is the bias of a plain transformer, without edge features.
    The weights are drawn as Xavier does, as those of the paper's linear map.

    Args:
      steps: K, as of the features.
      hidden: units of the network of a head; 0 is the linear form.
      heads, rngs: from the model.

    Raises:
      ValueError: at call, tokens without the feature 'graph_rrwp', one of another K, or more nodes
        than it has (NaN in a compiled program).

    Reference: Ma et al., arXiv 2305.17589.
    """

    feature = 'graph_rrwp'

    def __init__(
        self, steps: Size = 8, hidden: Count = 0, heads: int = CONTEXT, rngs: nnx.Rngs = CONTEXT
    ):
        self.steps = steps
        uniform = lambda shape, fan, axes: drawn_uniform(rngs, shape, (6 / fan) ** 0.5, axes)
        if not hidden:
            self.weights = uniform((heads, steps), heads + steps, ('heads', None))
            return
        self.w1 = uniform((heads, steps, hidden), steps + hidden, ('heads', None, None))
        self.b1 = nnx.Param(jnp.zeros((heads, hidden), jnp.float32), axes=('heads', None))
        self.w2 = uniform((heads, hidden), hidden + 1, ('heads', None))

    @property
    def graph_encoder(self):
        return f'rrwp(steps={self.steps})'

    def walks(self, pairs):
        """The probabilities, of as many steps as there are weights."""
        if pairs.ndim != 4 or pairs.shape[3] != self.steps:
            raise ValueError(
                f'rrwp reads walks of steps={self.steps}, [#B, L, n, {self.steps}], got '
                f'{pairs.shape}; give the same steps to the features'
            )
        return pairs

    def rows(self, pairs):
        return rrwp_bias(self.walks(pairs), self.weights[...])


class NetworkRRWP(RRWP, where=lambda given: given['hidden'] > 0):
    """RRWP with a network for each head."""

    def rows(self, pairs):
        return rrwp_network_bias(self.walks(pairs), self.w1[...], self.b1[...], self.w2[...])
