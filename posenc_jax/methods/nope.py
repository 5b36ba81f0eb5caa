"""No positional encoding."""

from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register


@register(
    'nope', kind='encoding', card=Card(name='NoPE', example='nope()', share='model', relative=True)
)
class NoPE(Encoding):
    """No positional encoding: only the causal mask carries the order of the tokens.

    `logit_ij = q_i . k_j / sqrt(H)`. It opens no door. Differs from the paper: nothing.

    Reference: Kazemnejad et al., arXiv 2305.19466.

    Example:
      >>> import posenc_jax as pj
      >>> pj.make('nope()').card.door
      'none'
    """
