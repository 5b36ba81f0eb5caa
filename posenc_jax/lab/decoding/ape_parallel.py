"""APE: parallel contexts at the same positions, whose share of the attention follows from a
temperature and a scale.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from posenc_jax.lab.decoding.cached_contexts import (
    PREFIX,
    QUERY,
    Layout,
    Piece,
    check_lengths,
    parallel_layout,
)
from posenc_jax.lab.decoding.contexts import from_query
from posenc_jax.lab.decoding.parallel_contexts import ParallelContexts
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.protocol import bounds
from posenc_jax.protocol.bounds import Positive
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, Promises, register


def ape_layout(prefix: int, lengths: Sequence[int]) -> Layout:
    """Contexts that all begin behind a prefix of `prefix` tokens, and a query behind the longest
    context.

    Raises:
      ValueError: no context, or lengths that are not positive.
    """
    check_lengths('ape_layout', prefix, lengths)
    return parallel_layout(
        [np.arange(prefix), *(prefix + np.arange(n) for n in lengths)], prefix + max(lengths)
    )


_FAMILY = ParallelContexts('ape_parallel', ape_layout)
encode = _FAMILY.encode


def ape_merge(
    contexts: tuple[Float[Array, '... V'], Float[Array, '...']],
    others: tuple[Float[Array, '... V'], Float[Array, '...']],
    *,
    temperature: float = 0.9,
    scale: float = 0.9,
) -> Float[Array, '... V']:
    """Merges attention over contexts with attention over all other keys: `w_C o_C + w_O o_O`, with
    `(w_C, w_O) = softmax(T s l_C, l_O)`.

    Args:
      contexts: the result o_C over the keys of contexts, by the softmax of `a / T`, and its
        log-sum-exp l_C.
      others: the result o_O over the other keys, by the softmax of `a`, and its log-sum-exp l_O.
      temperature, scale: T and s.
    """
    (of_contexts, l_c), (of_others, l_o) = contexts, others
    w = jax.nn.sigmoid(temperature * scale * l_c - l_o)[..., None]
    return w * of_contexts + (1.0 - w) * of_others


class _Side(Encoding):
    """Restricts attention to the pairs of a query token and a context, or to all other pairs."""

    def __init__(self, contexts: bool):
        self.contexts = contexts

    def mask(self, tq, tk):
        between = from_query(tq, tk)
        return between if self.contexts else ~between

    def may_see(self, tq, tk):
        if self.contexts:
            return (tq.segment_low == QUERY) & (tk.segment_high > PREFIX)
        return (tq.segment_high > QUERY) | (tk.segment_low <= PREFIX)


@dataclasses.dataclass(frozen=True)
class AdaptiveAttention:
    """An `attention_fn` in which query tokens weigh contexts by `ape_merge`. Other tokens attend
    as usual.

    Attributes:
      temperature, scale: T and s.

    Raises:
      ValueError: one of them is not positive and finite.
    """

    temperature: Positive = 0.9
    scale: Positive = 0.9

    def __post_init__(self):
        bounds.check('ape_parallel', bounds.hints_of(type(self)), vars(self))

    def __call__(self, encoding, q, k, v, tq, tk, **options):
        """As `sharded_attend`."""
        if tq.segment is None or tk.segment is None:
            return sharded_attend(encoding, q, k, v, tq, tk, **options)
        contexts, others = (
            sharded_attend(
                chain(encoding, _Side(side)), queries, k, v, tq, tk, return_lse=True, **options
            )
            for side, queries in ((True, q / self.temperature), (False, q))
        )
        merged = ape_merge(contexts, others, temperature=self.temperature, scale=self.scale)
        return merged.astype(v.dtype)


@register(
    'ape_parallel',
    kind='cache',
    card=Card(
        name='APE',
        door='cache, logits',
        example='ape_parallel.join(model, pieces, capacity=64)',
        use_when=(
            'You have many contexts that were read apart and one question about them; the '
            'measured claims are open.'
        ),
        promises=Promises(sweep_free=False),
    ),
)
def join(
    model: Transformer,
    pieces: Sequence[Piece],
    *,
    capacity: int,
    chosen: Sequence[int] | None = None,
    temperature: float = 0.9,
    scale: float = 0.9,
) -> tuple[Transformer, Cache]:
    """Joins contexts that were encoded separately into one cache, for a model that reads them with
    temperature and scale.

    `o = w_C o_C + w_O o_O, (w_C, w_O) = softmax(T s LSE_C(a / T), LSE_O(a))`, where a are the
    logits of a query, o_C is its attention over all keys of contexts by the softmax of a / T, and
    o_O that over the prefix and the query itself (`ape_merge`). All contexts have the same
    positions behind the prefix, P .. P + n - 1, and the query follows the longest. The order of the
    contexts does not matter, and no context is encoded again when others are chosen. Differs from
    the paper: nothing.

    Args:
      model: the model that encoded the pieces, or one that this function returned.
      pieces: the result of `encode`.
      capacity: slots of the cache, for prefix, contexts, query and generated tokens.
      chosen: the contexts to join, counted from 0; None for all.
      temperature, scale: T and s; 1 and 1 is plain parallel encoding. 0.9 and 0.9 are where the
        paper starts to tune.

    Returns:
      The model that reads the cache (`read`, `decode_step`, `continue_from`), and the cache.

    Raises:
      ValueError: contexts that do not fit the capacity, do not exist or are of another model; T or
        s that are not positive.

    Reference: Yang, Chen, Chen, arXiv 2502.05431.

    Example:
      >>> from posenc_jax.lab.decoding.read_contexts import continue_from
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> model = tiny_model('rope()', vocab_size=9)
      >>> reader, cache = join(model, encode(model, [1], [[2, 3], [4]]), capacity=8)
      >>> continue_from(reader, cache, np.array([[5, 6]]), max_new_tokens=2).shape
      (1, 2)
    """
    attend = AdaptiveAttention(temperature, scale)
    return _FAMILY.join(
        model, pieces, capacity=capacity, chosen=chosen, attention_fn=lambda count: attend
    )
