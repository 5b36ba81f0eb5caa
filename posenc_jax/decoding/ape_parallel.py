"""APE: parallel contexts at the same positions, their share of the attention set by a temperature
and a scale.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from posenc_jax.core.registry import Card, Promises, register
from posenc_jax.decoding import contexts as shared
from posenc_jax.decoding import read_contexts
from posenc_jax.decoding.contexts import ContextMask
from posenc_jax.decoding.pieces import (
    Layout,
    Piece,
    check_contexts,
    check_lengths,
    parallel_layout,
    select,
)
from posenc_jax.model.cache import Cache
from posenc_jax.model.transformer import Transformer

_LOWEST = (
    -1e29
)  # where a running maximum starts; masked logits are below it, so that they weigh nothing


def ape_layout(prefix: int, lengths: Sequence[int]) -> Layout:
    """Contexts that all begin behind a prefix of `prefix` tokens, and a query behind the longest of
    them.

    Raises:
      ValueError: no context, or lengths that are not positive.

    Example:
      >>> layout = ape_layout(3, [6, 9, 4])
      >>> layout.start, layout.ids[3].tolist()
      (12, [3, 4, 5, 6])
    """
    check_lengths('ape_layout', prefix, lengths)
    return parallel_layout(
        [np.arange(prefix), *(prefix + np.arange(n) for n in lengths)], prefix + max(lengths)
    )


def ape_reweigh(
    s: Float[Array, '... S'],
    context: Bool[Array, '... S'],
    total: Float[Array, '...'],
    *,
    temperature: float = 0.9,
    scale: float = 0.9,
) -> Float[Array, '... S']:
    """Logits whose softmax is APE's: those of contexts become `a / T + (T s - 1) total`, the others
    stay.

    Args:
      s: logits `a`.
      context: which of them are of contexts.
      total: log-sum-exp of `a / T` over the contexts of a row.
      temperature, scale: T and s.

    Example:
      >>> import jax
      >>> context = jnp.array([True, True, False, False])
      >>> a = ape_reweigh(
      ...     jnp.array([1.0, 2.0, 0.5, 0.0]),
      ...     context,
      ...     jax.nn.logsumexp(jnp.array([1.0, 2.0]) / 0.9),
      ... )
      >>> round(float(jax.nn.softmax(a)[:2].sum()), 5)
      0.74201
    """
    return jnp.where(context, s / temperature + (temperature * scale - 1.0) * total[..., None], s)


class AdaptiveContexts(ContextMask):
    """`ape_reweigh` for tokens of the query; all other tokens attend as ever.

    The log-sum-exp over contexts takes a first sweep over the keys.

    Args:
      sees: as for `ContextMask`.
      temperature, scale: T and s, positive.

    Raises:
      ValueError: one of them is not positive and finite.

    Example:
      >>> AdaptiveContexts(temperature=0.5).temperature
      0.5
    """

    def __init__(self, sees=None, temperature: float = 0.9, scale: float = 0.9):
        super().__init__(sees)
        for name, value in (('temperature', temperature), ('scale', scale)):
            if not 0 < value < math.inf:
                raise ValueError(f'ape_parallel: {name} must be positive and finite, got {value}')
        self.temperature, self.scale = temperature, scale

    def init_carry(self, q, tq):
        return jnp.full(q.shape[:3], _LOWEST, jnp.float32), jnp.zeros(q.shape[:3], jnp.float32)

    def turn(self, fresh, swept):
        high, total = swept
        found = total > 0
        return (jnp.where(found, high + jnp.log(jnp.where(found, total, 1.0)), 0.0),)

    def score(self, s, tq, tk, seen, carry):
        if tq.segment is None or tk.segment is None:
            return s, carry
        context = shared.from_query(tq, tk)
        if len(carry) == 1:  # the second sweep
            return ape_reweigh(
                s, context, carry[0], temperature=self.temperature, scale=self.scale
            ), carry
        high, total = carry
        a = jnp.where(context & seen, s / self.temperature, 10 * _LOWEST)
        new = jnp.maximum(high, a.max(-1))
        return s, (new, total * jnp.exp(high - new) + jnp.exp(a - new[..., None]).sum(-1))


def encode(
    model: Transformer, prefix, contexts: Sequence, *, together: int | None = None
) -> tuple[Piece, ...]:
    """The prefix and every context, each behind the prefix and blind to the others: pieces for
    `join`.

    Args:
      model: causal attention with one rotary encoding of fixed frequencies.
      prefix: token ids [n] or [B, n], or [] for none. A few tokens are worth it: they serve as
        attention sink.
      contexts: token ids, [n] or [B, n] each.
      together: most contexts in one pass.

    Raises:
      ValueError: no contexts, an empty one, ids that do not exist, an encoding that is not one
        rotary one (it is named).

    Example:
      >>> from flax import nnx
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=8, layers=1, width=8, heads=2, encoding='rope()'
      ... )
      >>> [
      ...     piece.ids.tolist()
      ...     for piece in encode(Transformer(cfg, rngs=nnx.Rngs(0)), [1], [[2, 3], [4]])
      ... ]
      [[0], [1, 2], [1]]
    """
    user = 'ape_parallel'
    tokens = check_contexts(user, prefix, contexts, model.cfg.vocab_size)
    layout = ape_layout(tokens[0].shape[1], [a.shape[1] for a in tokens[1:]])
    return read_contexts.encode_behind_prefix(user, model, tokens, layout.ids, together=together)


@register(
    'ape_parallel',
    kind='cache',
    card=Card(
        name='APE',
        title='APE: Faster and Longer Context-Augmented Generation via Adaptive Parallel Encoding',
        arxiv='2502.05431',
        door='cache, score',
        equation='o = w_C o_C + w_O o_O, (w_C, w_O) = softmax(T s LSE_C(a / T), LSE_O(a))',
        source='Infini-AI-Lab/APE',
        authors='Yang, Xinyu and Chen, Tianqi and Chen, Beidi',
        year=2025,
        example='ape_parallel.join(model, pieces, capacity=64)',
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
    """A cache of contexts that were encoded each on its own, and the model that reads it with
    temperature and scale.

    All contexts stand at the same positions behind the prefix, P .. P + n - 1, the query behind the
    longest. For a row of logits `a` of the query, `l_C = T s LSE_C(a / T)` over all keys of
    contexts, `l_O = LSE_O(a)` over the prefix and the query itself, `(w_C, w_O) = softmax(l_C,
    l_O)`, and `o = w_C softmax_C(a / T) v + w_O softmax_O(a) v`. That is one softmax over all keys,
    with `a / T + (T s - 1) LSE_C(a / T)` for those of contexts (`ape_reweigh`). The order of the
    contexts does not matter, and swapping them computes nothing again. Differs from the paper: one
    softmax instead of two that are merged, which is the same.

    Args:
      model: that encoded the pieces, or one of this function's.
      pieces: of `encode`.
      capacity: slots: of prefix, contexts, query and what is generated.
      chosen: which contexts, from 0; None for all.
      temperature, scale: T and s; 1 and 1 is plain parallel encoding. 0.9 and 0.9 are where the
        paper starts to tune.

    Returns:
      The model that reads the cache (`read`, `decode_step`, `continue_from`), and
      the cache.

    Raises:
      ValueError: contexts that do not fit the capacity, do not exist or are of another model; T or
        s that are not positive.

    Reference: Yang, Chen, Chen, arXiv 2502.05431.

    Example:
      >>> from posenc_jax.decoding.read_contexts import continue_from
      >>> from flax import nnx
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=8, layers=1, width=8, heads=2, encoding='rope()'
      ... )
      >>> model = Transformer(cfg, rngs=nnx.Rngs(0))
      >>> reader, cache = join(model, encode(model, [1], [[2, 3], [4]]), capacity=8)
      >>> continue_from(reader, cache, [[5, 6]], max_new_tokens=2).shape
      (1, 2)
    """
    user = 'ape_parallel'
    held = select(user, model, pieces, chosen)
    part = functools.partial(AdaptiveContexts, temperature=temperature, scale=scale)
    part()
    reader = shared.with_part(model, part)
    layout = ape_layout(held[0].length, [piece.length for piece in held[1:]])
    held = [shared.moved(model, piece, ids) for piece, ids in zip(held, layout.ids)]
    return reader, shared.join(user, reader, held, capacity=capacity, start=layout.start)
