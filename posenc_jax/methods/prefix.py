"""Prefix-LM mask."""

from jaxtyping import Array, Bool, Int

from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.families import Mask
from posenc_jax.protocol.masks import causal_mask
from posenc_jax.protocol.registry import Card, register


def prefix_mask(
    q_index: Int[Array, '#B T'],
    k_index: Int[Array, '#B S'],
    k_rank: Int[Array, '#B S'],
    length: int,
) -> Bool[Array, '#B 1 T S']:
    """`index_j <= index_i or rank_j < length`: the keys that are not later than the query, and the
    first tokens of the document.

    Args:
      q_index, k_index: places of the tokens in their row.
      k_rank: numbers of the keys among the real tokens of their document.
      length: number of tokens in the prefix.

    Reference: Raffel et al., arXiv 1910.10683.

    Example:
      >>> import jax.numpy as jnp
      >>> index = jnp.arange(4)[None]
      >>> prefix_mask(index, index, index, length=2)[0, 0].sum(-1).tolist()
      [2, 2, 3, 4]
    """
    return causal_mask(q_index, k_index) | (k_rank < length)[:, None, None, :]


@register(
    'prefix',
    kind='encoding',
    card=Card(
        name='prefix mask',
        example='prefix(length=4)',
        use_when=(
            'The first part of a text, such as a prompt or a source, should be read in '
            'both directions.'
        ),
        share='model',
        relative=True,
    ),
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
        return prefix_mask(tq.index, tk.index, tk.rank, self.length)
