"""Prefix-LM mask."""

from posenc_jax.protocol.families import Mask
from posenc_jax.protocol.registry import Card, Promises, register


@register(
    'prefix',
    kind='encoding',
    card=Card(
        name='prefix mask',
        title='Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer',
        arxiv='1910.10683',
        door='mask',
        equation='key j visible to query i iff index_j <= index_i or j is one of the first '
        '`length` of its document',
        source='google-research/text-to-text-transfer-transformer',
        authors='Raffel, Colin and Shazeer, Noam and Roberts, Adam and Lee, Katherine and '
        'Narang, Sharan and Matena, Michael '
        'and Zhou, Yanqi and Li, Wei and Liu, Peter J.',
        year=2020,
        example='prefix(length=4)',
        share='model',
        promises=Promises(relative=True),
    ),
)
class Prefix(Mask):
    """Causal mask in which every query also sees the first `length` tokens of its document.

    Key j is visible to query i iff `index_j <= index_i`, or j is one of the first `length` tokens.
    Differs from the paper: the prefix has one length for all rows.

    Args:
      length: number of real tokens in the prefix, at least 1; positions do not matter.

    Raises:
      ValueError: length below 1.

    Reference: Raffel et al., arXiv 1910.10683.

    Example:
      >>> import posenc_jax as pj
      >>> t = pj.Tokens.of(length=3)
      >>> pj.make('prefix(length=2)').mask(t, t)[0, 0].sum(-1).tolist()
      [2, 2, 3]
    """

    traits = frozenset({'decides_causality', 'sees_later'})

    def __init__(self, length: int):
        if length < 1:
            raise ValueError(f'prefix length must be at least 1, got {length}')
        self.length = length

    @property
    def shown_first(self):
        return self.length

    def allow(self, tq, tk):
        causal = tk.index[:, None, :] <= tq.index[:, :, None]
        return (causal | (tk.rank < self.length)[:, None, :])[:, None]
