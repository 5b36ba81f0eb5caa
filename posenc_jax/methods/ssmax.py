"""Scalable softmax: logits grow with the logarithm of the number of keys."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.base.products import heads_first
from posenc_jax.protocol.bounds import CONTEXT, Positive
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.families import check_heads
from posenc_jax.protocol.length import current_length
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens


def ssmax_factor(gain: Float[Array, 'N'], count: Int[Array, '#B T']) -> Float[Array, '#B N T 1']:
    """`g_h ln(n_i)`, float32.

    Example:
      >>> ssmax_factor(jnp.array([1.0, 2.0]), jnp.array([[1, 2]]))[0, :, :, 0].round(4).tolist()
      [[0.0, 0.6931], [0.0, 1.3863]]
    """
    return (
        gain.astype(jnp.float32)[:, None, None]
        * jnp.log(count.astype(jnp.float32))[:, None, :, None]
    )


@register(
    'ssmax',
    kind='encoding',
    card=Card(
        name='scalable softmax',
        example='ssmax()',
        share='layer',
        causal_only=True,
        relative=True,
        needs_training=True,
    ),
)
class SSMax(Encoding):
    """Multiplies logits by the logarithm of the number of keys and a trained gain per head.

    `logit_ij <- g_h ln(n_i) logit_ij`, where n_i is the number of tokens of its document up to the
    query, itself included; the first token has a single key and factor 0. So the softmax stays as
    sharp over many keys as over few. In a chain it multiplies what earlier parts add to the logits
    and not what later parts add: compare `bam() | ssmax()` and `ssmax() | bam()`. Keys that another
    mask hides, such as a window, are counted too, since a tile cannot know their number. Differs
    from the paper: nothing in the factor; the gain starts at 1, as in the code of BAM.

    Args:
      gain: initial g of all heads, positive.
      bidirectional: n_i is the number of all tokens of the document. Encoders need it, since their
        queries see later keys too, and refuse False. Decoders must not use it, since it would
        reveal how long the text will be.
      heads: N, from the model.

    Raises:
      ValueError: when used, queries with another number of heads, or a document of unknown length
        (`bidirectional` with packed documents that come in parts).

    Reference: Nakanishi, arXiv 2501.19399.
    """

    def __init__(self, gain: Positive = 1.0, bidirectional: bool = False, heads: int = CONTEXT):
        self.gain = nnx.Param(jnp.full(heads, gain, jnp.float32), axes=('heads',))

    def count(self, tq: Tokens) -> Int[Array, '#B T']:
        """n_i."""
        return tq.rank + 1

    def logits(self, s, q, k, tq, tk, seen, carry):
        check_heads('ssmax', self.gain[...], s)
        factor = ssmax_factor(self.gain[...], self.count(tq))
        # A refused key stays refused where ln n = 0.
        return jnp.where(jnp.isneginf(s), s, s * factor), carry


class BidirectionalSSMax(SSMax, where=lambda given: given['bidirectional']):
    """Scalable softmax that counts all tokens of the document."""

    card = dataclasses.replace(SSMax.card, causal_only=False)
    traits = frozenset({'sees_later', 'reads_other_tokens'})

    def count(self, tq):
        return heads_first(tq.feats['ssmax'])[:, 0]

    def project(self, q, k, v, tq, tk, x=None):
        ordered = lambda tok: dataclasses.replace(tok, pos=tok.rank)
        count = current_length(ordered(tq), ordered(tk))[0]
        count = jnp.broadcast_to(count, (count.shape[0], tq.length))
        return q, k, v, tq.with_feats(ssmax=count[..., None]), tk
