"""Soft caps: logits stay within a bound."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from posenc_jax.protocol.bounds import Positive
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register


def soft_cap_logits(s: Float[Array, '...'], limit: float) -> Float[Array, '...']:
    """`limit tanh(s / limit)`. A logit of minus infinity, of a refused key, stays.

    Example:
      >>> soft_cap_logits(jnp.array([1.0, 100.0, -jnp.inf]), 10.0).round(3).tolist()
      [0.997, 10.0, -inf]
    """
    return jnp.where(jnp.isneginf(s), s, limit * jnp.tanh(s / limit))


@register(
    'soft_cap',
    kind='encoding',
    card=Card(
        name='soft cap',
        example='soft_cap(2.0)',
        use_when=(
            'Logits of attention grow so large that training is unstable, or you load a '
            'model such as Gemma 2.'
        ),
        share='model',
        relative=True,
    ),
)
class SoftCap(Encoding):
    """Holds the logits of attention between -c and c by a hyperbolic tangent.

    `logit_ij <- c tanh(logit_ij / c)`. Small logits hardly change. The cap has no positional
    information of its own. In a chain it also caps what earlier parts add to the logits, and not
    what later parts add: compare `alibi() | soft_cap(50.0)` and `soft_cap(50.0) | alibi()`.

    Differs from the paper: nothing in the attention. The cap of the output is the field
    `output_cap` of the model.

    Args:
      limit: c, positive; 50 in the paper.

    Reference: Gemma Team, arXiv 2408.00118, section 2.
    """

    def __init__(self, limit: Positive = 50.0):
        self.limit = limit

    def logits(self, s, q, k, tq, tk, seen, carry):
        return soft_cap_logits(s, self.limit), carry
