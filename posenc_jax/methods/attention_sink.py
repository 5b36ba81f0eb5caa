"""Learned attention sinks: a logit per head that takes weight and has no value."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.protocol.bounds import CONTEXT, Finite
from posenc_jax.protocol.encoding import Constant, Encoding
from posenc_jax.protocol.families import check_heads
from posenc_jax.protocol.registry import Card, register


def attention_sink_share(
    lse: Float[Array, 'B T N'], sinks: Float[Array, 'N'] | Float[Array, '']
) -> Float[Array, 'B T N']:
    """The share of the weights of a query that its keys keep, `sigmoid(lse - c)`, float32.

    Args:
      lse: the log-sum-exp of the logits of each query.
      sinks: c, the logit of the sink of each head.

    Example:
      >>> attention_sink_share(jnp.log(jnp.full((1, 1, 1), 2.0)), jnp.zeros(1)).round(4).item()
      0.6667
    """
    return jax.nn.sigmoid(lse - sinks)


@register(
    'attention_sink',
    kind='encoding',
    card=Card(
        name='attention sink',
        example='attention_sink()',
        use_when=(
            'You train a model whose cache will keep only the latest tokens, and do not '
            'want to keep the first ones as well.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class AttentionSink(Encoding):
    """Lets a trained logit per head take a part of the weights; acts on the result of attention.

    `a_ij = exp(s_ij) / (exp(c_h) + sum_l exp(s_il))`, the weights of the values, where `s_ij` are
    the logits of all other parts. So `out = softmax(s) v sigmoid(lse - c_h)`, with the log-sum-exp
    of the logits of the query. The sink is not scaled, rotated or masked, and it has no value.
    With c = 0 it is the softmax with 1 added to its denominator; with a large negative c it is the
    ordinary softmax. A query that sees no key gives zeros. It has no positional information, and is
    a part of a chain, as in `rope() | attention_sink()`. Differs from the released code: sinks are
    float32 (the code stores bfloat16), and their initial value is ours, since none is released.

    `posenc_jax.lab.decoding.streaming` has the cache that keeps the first tokens as sinks.

    Args:
      initial: c of all heads at the start.
      trained: whether c is trained.
      heads: from the model.

    Reference: OpenAI, arXiv 2508.10925.
    """

    def __init__(self, initial: Finite = 0.0, trained: bool = True, heads: int = CONTEXT):
        variable = nnx.Param if trained else Constant
        self.sinks = variable(jnp.full(heads, initial, jnp.float32), axes=('heads',))

    def rescale(self, out, lse, tq):
        check_heads('attention_sink', self.sinks[...], jnp.swapaxes(out, 1, 2))
        return (out * attention_sink_share(lse, self.sinks[...])[..., None]).astype(out.dtype)
