"""The masks that every model needs: causal, full, document. They read indices and segments, but
never positions.
"""

from typing import Any

from jaxtyping import Array, Bool, Int

from posenc_jax.protocol.families import Mask
from posenc_jax.protocol.registry import Card, Promises, register

_PLAIN = Promises(relative=True, fused=True)
_SOURCE: dict[str, Any] = dict(
    title='Attention Is All You Need',
    arxiv='1706.03762',
    source='tensorflow/tensor2tensor',
    authors='Vaswani, Ashish and Shazeer, Noam and Parmar, Niki and Uszkoreit, Jakob and Jones, '
    'Llion and Gomez, Aidan N. '
    'and Kaiser, Lukasz and Polosukhin, Illia',
    year=2017,
    door='mask',
    share='model',
)


def causal_mask(
    q_index: Int[Array, '#B T'], k_index: Int[Array, '#B S']
) -> Bool[Array, '#B 1 T S']:
    """`index_j <= index_i`: the keys that are not later than the query, the query itself included.

    Reference: Vaswani et al., arXiv 1706.03762.

    Example:
      >>> import jax.numpy as jnp
      >>> index = jnp.arange(3)[None]
      >>> causal_mask(index, index)[0, 0].sum(-1).tolist()
      [1, 2, 3]
    """
    return (k_index[:, None, :] <= q_index[:, :, None])[:, None]


def document_mask(
    q_segment: Int[Array, '#B T'], k_segment: Int[Array, '#B S']
) -> Bool[Array, '#B 1 T S']:
    """`segment_j = segment_i`: the keys of the document of the query, in packed rows.

    Args:
      q_segment, k_segment: numbers, equal within a document.

    Reference: Vaswani et al., arXiv 1706.03762, which masks padding alone.

    Example:
      >>> import jax.numpy as jnp
      >>> segment = jnp.array([[0, 0, 1]])
      >>> document_mask(segment, segment)[0, 0].sum(-1).tolist()
      [2, 2, 1]
    """
    return (k_segment[:, None, :] == q_segment[:, :, None])[:, None]


@register(
    'causal',
    kind='encoding',
    card=Card(
        name='causal mask',
        equation='key j visible to query i iff index_j <= index_i',
        example='causal()',
        use_when=(
            'You have a decoder, where no token may see a later one; decoders add it by themselves.'
        ),
        promises=_PLAIN,
        **_SOURCE,
    ),
)
class Causal(Mask):
    """Lets a query see the keys that are not later than itself. Differs from the paper: nothing.

    Reference: Vaswani et al., arXiv 1706.03762.

    Example:
      >>> import posenc_jax as pj
      >>> sorted(pj.make('rope() | causal()', head_dim=8).traits)
      ['decides_causality', 'rotates']
    """

    traits = frozenset({'decides_causality'})

    def allow(self, tq, tk):
        return causal_mask(tq.index, tk.index)

    def may_see(self, tq, tk):
        return tk.index_low <= tq.index_high

    def sees_all(self, tq, tk):
        return tk.index_high <= tq.index_low


@register(
    'full',
    kind='encoding',
    card=Card(
        name='full attention',
        equation='every key is visible',
        example='full()',
        use_when='Every token may see every other one, as in an encoder or in a classifier.',
        promises=_PLAIN,
        **_SOURCE,
    ),
)
class Full(Mask):
    """Lets a query see every key, earlier or later. With it in its spec, a decoder adds no causal
    mask.

    Differs from the paper (its encoder): nothing.

    Reference: Vaswani et al., arXiv 1706.03762.

    Example:
      >>> import posenc_jax as pj
      >>> pj.make('full()').mask(None, None) is None
      True
    """

    traits = frozenset({'decides_causality', 'sees_later'})

    def mask(self, tq, tk):
        return None

    def sees_all(self, tq, tk):
        return True


@register(
    'document',
    kind='encoding',
    card=Card(
        name='document mask',
        equation='key j visible to query i iff segment_j = segment_i',
        example='document()',
        use_when='Several documents are packed into a row and should not see each other.',
        relative=True,
        **_SOURCE,
    ),
)
class Document(Mask):
    """Lets a query see the keys of its own packed document; without segments it hides nothing.

    Differs from the paper, which masks padding alone: here packed documents are masked from each
    other too.

    Reference: Vaswani et al., arXiv 1706.03762.

    Example:
      >>> import posenc_jax as pj
      >>> t = pj.Tokens.of(segment=[[0, 0, 1]])
      >>> pj.make('document()').mask(t, t)[0, 0].tolist()
      [[True, True, False], [True, True, False], [False, False, True]]
    """

    traits = frozenset({'decides_segments'})

    def mask(self, tq, tk):
        if tq.segment is None and tk.segment is None:
            return None
        if tq.segment is None or tk.segment is None:
            known, other = ('keys', 'queries') if tq.segment is None else ('queries', 'keys')
            raise ValueError(f'document: the {known} have segments and the {other} have none')
        return document_mask(tq.segment, tk.segment)

    def may_see(self, tq, tk):
        if tq.segment_low is None or tk.segment_low is None:
            return True
        if tq.segment_high is None or tk.segment_high is None:
            return True
        return (tk.segment_low <= tq.segment_high) & (tk.segment_high >= tq.segment_low)

    def sees_all(self, tq, tk):
        if tq.segment_low is None and tk.segment_low is None:
            return True
        if tq.segment_low is None or tk.segment_low is None:
            return False
        one = (tq.segment_low == tq.segment_high) & (tk.segment_low == tk.segment_high)
        return one & (tq.segment_low == tk.segment_low)
