"""Prefix-LM mask."""

from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.families import Mask
from posenc_jax.protocol.registry import Card, register


@register(
    'prefix',
    kind='encoding',
    card=Card(name='prefix mask', example='prefix(length=4)', share='model', relative=True),
)
class Prefix(Mask):
    """Causal mask in which every query also sees the first `length` tokens of its document.

    `key j visible to query i iff index_j <= index_i or j is one of the first length tokens`.
    Differs from the paper: the prefix has one length for all rows.

    Args:
      length: number of real tokens in the prefix, at least 1; positions do not matter.

    Reference: Raffel et al., arXiv 1910.10683.

    Example:
      >>> import posenc_jax as pj
      >>> t = pj.Tokens.of(length=3)
      >>> pj.make('prefix(length=2)').mask(t, t)[0, 0].sum(-1).tolist()
      [2, 2, 3]
    """

    traits = frozenset({'decides_causality', 'sees_later'})

    def __init__(self, length: Size):
        self.length = length

    @property
    def shown_first(self):
        return self.length

    def allow(self, tq, tk):
        causal = tk.index[:, None, :] <= tq.index[:, :, None]
        return (causal | (tk.rank < self.length)[:, None, :])[:, None]
