"""Attention temperatures for models without positional encoding."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.methods.kerple import clamp_through
from posenc_jax.methods.nope import NoPE
from posenc_jax.protocol.bounds import CONTEXT, NonNegative, PerHead, Positive, TrainLen
from posenc_jax.protocol.encoding import Constant, Encoding
from posenc_jax.protocol.registry import Card, register

_LOWEST = 1.0  # of a trained temperature


def nope_temperature_curve(
    order: Int[Array, '...'], slope: float, train_len: int
) -> Float[Array, '...']:
    """`1 + a ln(max(i + 1, L) / L)`, float32: the temperature of the i-th token.

    It is exactly 1 up to the trained length L.
    """
    return 1.0 + slope * jnp.log(jnp.maximum(order + 1, train_len).astype(jnp.float32) / train_len)


def nope_temperature_entropy(
    s: Float[Array, '... T S'], seen: Bool[Array, '... T S'] | None = None
) -> Float[Array, '... T']:
    """`-sum_j p_ij log2 p_ij` of the softmax over the visible keys, in bits, float32.

    It is 0 for a query that sees no key.
    """
    s = s.astype(jnp.float32)
    seen = jnp.ones(s.shape, bool) if seen is None else seen
    log_p = jax.nn.log_softmax(jnp.where(seen, s, -1e30), axis=-1)
    return -jnp.where(seen, jnp.exp(log_p) * log_p, 0.0).sum(-1) / np.float32(np.log(2.0))


CARD = Card(
    name='NoPE temperature',
    door='project',
    example='nope_temperature(1.5)',
    use_when='You have a model without positions and read texts longer than in training.',
    relative=True,
)


@register('nope_temperature', kind='encoding', card=CARD)
@register('nope_temperature', kind='extension', card=CARD)
class NoPETemperature(Encoding):
    """Multiplies queries, and so the logits, to keep attention sharp beyond the trained length L.

    `logit_ij = lambda_ih q_i . k_j / sqrt(H)`, `lambda_ih = temperature_h (1 + slope ln(max(i + 1,
    L) / L))`, i the rank of the token in its document. It is an inverse temperature: values above 1
    make attention sharper. It carries no positional information and is meant for models without any
    (`nope()`), whose weights stay as they are. One number serves all layers and heads; the paper's
    values are about 1.2, 1.5, 1.8 for 2, 4, 8 times L. With `per_head` every layer and head trains
    its own temperature, which starts at that number (`train.tune='encodings'`,
    configs/temperature.py). As an extension it replaces `nope()`. With `init.extend` every layer
    gets its own values. With `Transformer.extend`, which trains nothing, all layers share one set.

    Differs from the paper: trained values are held at 1 or more when used, with the gradient of the
    identity, where the released code overwrites them after each step, in bfloat16. The paper fits
    its numbers by the curve in i; here the curve multiplies the temperature, and temperature = 1
    gives the curve alone.

    Args:
      temperature: one number, or one per head.
      per_head: trains one per head, at least 1.
      slope: a of the curve, at least 0; 0.3 gives 1.4 at 4 L.
      train_len, heads: L, N, from the model.

    Raises:
      ValueError: a temperature that is below 1 and trained; at call, another number of heads.

    Reference: Wang, Ji, Wu, Yan, Gui, Zhang, Huang, Wang, arXiv 2404.12224.

    Example:
      >>> import posenc_jax as pj
      >>> from posenc_jax.methods.extend import extend
      >>> short, sizes = pj.make('nope()', causal=True), dict(heads=4, train_len=64)
      >>> longer = extend(short, 'nope_temperature(1.6, per_head=True)', **sizes)
      >>> longer.parts[0].temperatures().round(2).tolist()
      [1.6, 1.6, 1.6, 1.6]
    """

    extends = (NoPE,)

    def __init__(
        self,
        temperature: Positive | PerHead = 1.0,
        per_head: bool = False,
        slope: NonNegative = 0.0,
        train_len: TrainLen = CONTEXT,
        heads: int = CONTEXT,
    ):
        given = np.asarray(temperature, np.float64)
        if per_head and given.min() < _LOWEST:
            raise ValueError(
                f'nope_temperature: trained temperatures are at least 1, got {temperature}; use '
                'per_head=False'
            )
        self.slope, self.train_len = slope, train_len
        kind = nnx.Param if per_head else Constant
        each = jnp.broadcast_to(jnp.asarray(given, jnp.float32), (heads,))
        self.raw = kind(each, axes=('heads',))

    def temperatures(self) -> Float[Array, 'N']:
        """The temperatures in use, one per head."""
        raw = self.raw[...]
        return clamp_through(raw, _LOWEST) if isinstance(self.raw, nnx.Param) else raw

    def project(self, q, k, v, tq, tk, x=None):
        scale = self.temperatures()
        if len(scale) != q.shape[2]:
            raise ValueError(f'nope_temperature was built for {len(scale)} heads, got {q.shape[2]}')
        if self.slope:
            scale = scale * nope_temperature_curve(tq.rank, self.slope, self.train_len)[..., None]
        return (q.astype(jnp.float32) * scale[..., None]).astype(q.dtype), k, v, tq, tk
