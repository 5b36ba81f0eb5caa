"""Parallel pieces behind a shared sink: their positions, and which pieces a query attends to."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.attention.tiles import Blocks, pair_logits
from posenc_jax.lab.decoding.cached_contexts import (
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
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, Promises, register
from posenc_jax.protocol.tokens import Tokens

Size = Literal['max', 'average', 'harmonic']
Align = Literal['left', 'right', 'evenly', 'order']
SIZES = {
    'max': np.max,
    'average': np.mean,
    'harmonic': lambda lengths: len(lengths) / np.sum(1 / np.asarray(lengths)),
}
ALIGNS = ('left', 'right', 'evenly', 'order')
_LOWEST = -1e29  # logits below it are masked
_KEYS = 256  # keys per block
_FEATURE = 'parallel_context_entropy'


def piece_layout(
    prefix: int, lengths: Sequence[int], *, size: Size = 'max', align: Align = 'evenly'
) -> Layout:
    """Pieces that share the m positions behind the prefix, from b = `prefix`, and a query from b +
    m.

    Token t of a piece of n tokens has the position `b + t m / n` ('evenly', which may be
    fractional), `b + t` ('left') or `b + m - n + t` ('right'). m is the largest, average or
    harmonic mean of the lengths. If it is not the largest, 'left' reaches into the positions of the
    query and 'right' reaches below b. 'order' puts one piece after the other and the query last.

    Raises:
      ValueError: no pieces, lengths that are not positive, an unknown choice.
    """
    check_choice('parallel_context_entropy: size', size, SIZES)
    check_choice('parallel_context_entropy: align', align, ALIGNS)
    check_lengths('piece_layout', prefix, lengths)
    m = float(sum(lengths) if align == 'order' else SIZES[size](lengths))
    before = np.cumsum([0, *lengths])
    place = {
        'left': lambda t, n, at: t,
        'right': lambda t, n, at: m - n + t,
        'evenly': lambda t, n, at: t * m / n,
        'order': lambda t, n, at: at + t,
    }[align]
    ids = [
        np.arange(prefix),
        *(prefix + place(np.arange(n), n, at) for n, at in zip(lengths, before)),
    ]
    return parallel_layout(ids, prefix + m)


_FAMILY = ParallelContexts('parallel_context_entropy', piece_layout)
encode = _FAMILY.encode  # with `size` and `align` of `piece_layout`


def piece_scores(
    p: Float[Array, '... S'], segment: Int[Array, 'S'], count: int, top: int = 5
) -> Float[Array, '... count']:
    """The sum of the `top` largest probabilities in each of the pieces 1 .. count.

    Raises:
      ValueError: top below 1.
    """
    _check_number('top', top)
    of = segment == 1 + jnp.arange(count)[:, None]
    return jax.lax.top_k(jnp.where(of, p[..., None, :], 0.0), min(top, p.shape[-1]))[0].sum(-1)


def pool_scores(
    scores: Float[Array, 'B N T C'], rows: Bool[Array, '#B T'], top: int = 5
) -> Float[Array, 'B 1 1 C']:
    """Scores pooled over heads and rows: for each piece, the sum of its `top` largest scores.

    Raises:
      ValueError: top below 1.
    """
    _check_number('top', top)
    batch, heads, count, pieces = scores.shape
    flat = jnp.where(rows[:, None, :, None], scores, 0.0).reshape(batch, heads * count, pieces)
    return jax.lax.top_k(jnp.swapaxes(flat, 1, 2), min(top, heads * count))[0].sum(-1)[
        :, None, None
    ]


def best_pieces(scores: Float[Array, '... C'], keep: int) -> Bool[Array, '... C']:
    """Which pieces have the `keep` largest scores; of equal scores, the first counts.

    Raises:
      ValueError: keep below 1.
    """
    _check_number('keep', keep)
    chosen = jax.lax.top_k(scores, min(keep, scores.shape[-1]))[1]
    return jax.nn.one_hot(chosen, scores.shape[-1], dtype=bool).any(-2)


def _check_number(name, value):
    if not (isinstance(value, numbers.Integral) and value >= 1):
        raise ValueError(
            f'parallel_context_entropy: {name} must be at least 1, an integer, got {value}'
        )


def select_pieces(
    p: Float[Array, 'B N T S'],
    segment: Int[Array, 'S'],
    count: int,
    *,
    keep: int = 2,
    top: int = 5,
    pooled: bool = False,
) -> Float[Array, 'B N T S']:
    """Probabilities of query rows, with those of all but the best pieces set to 0. The rows are
    divided by their sum, or by 1e-5 if the sum is smaller.

    This is the definition; `SelectedAttention` evaluates it in blocks of keys.
    """
    scores = piece_scores(p, segment, count, top)
    if pooled:
        scores = pool_scores(scores, jnp.ones((1, p.shape[2]), bool), top)
    kept = jnp.concatenate(
        [jnp.ones((*scores.shape[:-1], 1), bool), best_pieces(scores, keep)], axis=-1
    )
    p = jnp.where(kept[..., jnp.maximum(segment, 0)], p, 0.0)
    return p / jnp.maximum(p.sum(-1, keepdims=True), 1e-5)


class _KeptPieces(Encoding):
    """Hides from tokens of the query the pieces that were not chosen for them.

    The choice is a feature of the query tokens, [B, T, N, C].
    """

    def mask(self, tq, tk):
        kept = jnp.swapaxes(tq.feats[_FEATURE], 1, 2)
        of_piece = tk.segment[:, None] == 1 + jnp.arange(kept.shape[-1])[:, None]
        dropped = (1.0 - kept) @ of_piece[:, None].astype(jnp.float32) > 0
        return ~(dropped & from_query(tq, tk))


@dataclasses.dataclass(frozen=True)
class SelectedAttention:
    """An `attention_fn` that hides all but the best pieces from each token of the query.

    A first pass over the keys finds the largest logits of each piece and the log-sum-exp of the
    row. Together they give the largest probabilities in the softmax over all keys. Their sum is the
    score of the piece (`piece_scores`).

    Attributes:
      count: how many pieces there are.
      keep: K, how many pieces a query token sees.
      top: how many of the largest probabilities of a piece make its score.
      pooled: whether all heads, and all rows of the query that are read together, share a choice.

    Raises:
      ValueError: one of the numbers is below 1 or no integer.
    """

    count: int
    keep: int = 2
    top: int = 5
    pooled: bool = False

    def __post_init__(self):
        for name in ('count', 'keep', 'top'):
            _check_number(name, getattr(self, name))

    def __call__(self, encoding, q, k, v, tq, tk, *, heads_first: bool = False, **options):
        """As `sharded_attend`."""
        encoding, tq = self.choose(encoding, q, k, tq, tk, heads_first=heads_first)
        return sharded_attend(encoding, q, k, v, tq, tk, heads_first=heads_first, **options)

    def choose(
        self, encoding: Encoding, q, k, tq: Tokens, tk: Tokens, *, heads_first: bool = False
    ):
        """The encoding that hides the other pieces, and the query tokens with their choice."""
        if tq.segment is None or tk.segment is None:
            return encoding, tq
        inputs = jax.lax.stop_gradient((q, k, tq, tk))
        scores = self._scores(encoding, *inputs, heads_first)
        if self.pooled:
            rows = tq.segment == QUERY if tq.valid is None else (tq.segment == QUERY) & tq.valid
            scores = jnp.broadcast_to(pool_scores(scores, rows, self.top), scores.shape)
        kept = jnp.swapaxes(best_pieces(scores, self.keep), 1, 2).astype(jnp.float32)
        return chain(encoding, _KeptPieces()), tq.with_feats(**{_FEATURE: kept})

    def _scores(self, encoding, q, k, tq, tk, heads_first) -> Float[Array, 'B N T C']:
        """`piece_scores` of the softmax over all keys, from one pass over blocks of keys."""
        q, axis = jnp.swapaxes(q, 1, 2), 2 if heads_first else 1
        mixes = 'mixes_logits' in encoding.traits  # and needs all keys at once
        blocks = Blocks(k.shape[axis] if mixes else min(_KEYS, k.shape[axis]), axis)
        k, tk = blocks.pad(k), blocks.pad_tokens(tk)

        def k_block(state, number):
            largest, high, total = state
            own = blocks.tokens(tk, number)
            s, _, seen = pair_logits(encoding, q, blocks.read(k, number), tq, own)
            a = jnp.where(seen, s, 10 * _LOWEST)
            new = jnp.maximum(high, a.max(-1))
            total = total * jnp.exp(high - new) + jnp.exp(a - new[..., None]).sum(-1)

            def piece(inputs):
                here, before = own.segment == inputs[0] + 1, inputs[1]

                def found(before):
                    joined = jnp.where(here[:, None, None], a, _LOWEST)
                    both = jnp.concatenate([before, jnp.maximum(joined, _LOWEST)], axis=-1)
                    return jax.lax.top_k(both, self.top)[0]

                # A block holds tokens of few pieces; the others are skipped.
                return jax.lax.cond(here.any(), found, lambda before: before, before)

            return (jax.lax.map(piece, (jnp.arange(self.count), largest)), new, total), None

        rows = q.shape[:3]
        start = (
            jnp.full((self.count, *rows, self.top), _LOWEST, jnp.float32),
            jnp.full(rows, _LOWEST, jnp.float32),
            jnp.zeros(rows, jnp.float32),
        )
        numbers = jnp.arange(tk.length // blocks.size)
        (largest, high, total), _ = jax.lax.scan(k_block, start, numbers)
        lse = high + jnp.log(jnp.maximum(total, 1e-30))
        p = jnp.where(largest > _LOWEST, jnp.exp(largest - lse[..., None]), 0.0)
        return jnp.moveaxis(p.sum(-1), 0, -1)


@register(
    'parallel_context_entropy',
    kind='cache',
    card=Card(
        name='parallel contexts: sinks and selection',
        door='cache, logits',
        equation='id of token t of n: b + t m / n; keep the K pieces with the largest sums of '
        'their 5 largest probabilities',
        example='parallel_context_entropy.join(model, pieces, capacity=64)',
        use_when=(
            'You have many pieces that were read apart, and the model should attend to '
            'the best of them.'
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
    size: Size = 'max',
    align: Align = 'evenly',
    keep: int | None = 2,
    top: int = 5,
    pooled: bool = False,
) -> tuple[Transformer, Cache]:
    """Joins pieces behind a sink prefix into one cache, for a model whose query tokens attend to
    the best pieces.

    `piece_layout` gives the positions of the joined pieces; keys that were encoded at others are
    rotated. For every head and query token, the score of a piece is the sum of its 5 largest
    probabilities in the softmax over all keys. The probabilities of all pieces but the K best are
    set to 0 and the row is renormalised (`select_pieces`). Prefix and query are always seen. The
    choice is made again for every decoded token. Differs from the paper: the released code divides
    by a sum of at least 1e-5, this code by the sum itself. Without `pooled` the sum is smaller than
    that only if more than 99,999 keys are dropped.

    Args:
      model: the model that encoded the pieces, or one that this function returned.
      pieces: the result of `encode`.
      capacity: slots of the cache, for prefix, pieces, query and generated tokens.
      chosen: the pieces to join, counted from 0, in their order; None for all.
      size, align: the positions of the pieces, see `piece_layout`.
      keep: K, how many pieces a row keeps; None for all.
      top: how many probabilities of a piece are summed.
      pooled: one choice for all heads and rows, see `SelectedAttention` and `pool_scores`.

    Returns:
      The model that reads the cache (`read`, `decode_step`, `continue_from`), and the cache.

    Raises:
      ValueError: pieces that do not fit the capacity, do not exist or are of another model; K or
        `top` below 1.

    Reference: Zhang, Wang, Huang, Fang, Zhang, Deng, Li, Yu, arXiv 2412.16545.

    Example:
      >>> from posenc_jax.lab.decoding.read_contexts import continue_from
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> model = tiny_model('rope()', vocab_size=9)
      >>> pieces = encode(model, [1], [[2, 3], [4], [7, 7]])
      >>> reader, cache = join(model, pieces, capacity=10, keep=1)
      >>> continue_from(reader, cache, jnp.array([[5, 6]]), max_new_tokens=2).shape
      (1, 2)
    """
    attend = None if keep is None else lambda count: SelectedAttention(count, keep, top, pooled)
    places = dict(size=size, align=align)
    return _FAMILY.join(
        model, pieces, capacity=capacity, chosen=chosen, attention_fn=attend, **places
    )
