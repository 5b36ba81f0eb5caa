"""No positional encoding."""

from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, Promises, register


@register(
    'nope',
    kind='encoding',
    card=Card(
        name='NoPE',
        title='The Impact of Positional Encoding on Length Generalization in Transformers',
        arxiv='2305.19466',
        door='none',
        equation='logit_ij = q_i . k_j / sqrt(H)',
        source='McGill-NLP/length-generalization',
        authors='Kazemnejad, Amirhossein and Padhi, Inkit and Natesan Ramamurthy, Karthikeyan '
        'and Das, Payel and Reddy, Siva',
        year=2023,
        example='nope()',
        share='model',
        promises=Promises(relative=True, fused=True),
    ),
)
class NoPE(Encoding):
    """No positional encoding: only the causal mask carries the order of the tokens.

    It opens no door. Differs from the paper: nothing.

    Reference: Kazemnejad et al., arXiv 2305.19466.

    Example:
      >>> import posenc_jax as pj
      >>> pj.make('nope()').card.door
      'none'
    """
