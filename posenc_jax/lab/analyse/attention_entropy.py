"""Attention entropy: how evenly the queries of a model spread their attention over the keys. Texts
are read as a whole, or with their middle cut into parallel pieces.
"""

import argparse
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.lab.analyse.capture import (
    attention_of,
    capture_encodings,
    check_block,
    compiled,
    over_queries,
)
from posenc_jax.lab.analyse.protocol import Analysis
from posenc_jax.lab.analyse.report import Report, by_layer
from posenc_jax.lab.analyse.subjects import subject
from posenc_jax.lab.decoding.contexts import QUERY, check_model, with_contexts
from posenc_jax.lab.decoding.parallel_context_entropy import SelectedAttention, piece_layout
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.sharding import sharded_attend
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import quoted
from posenc_jax.protocol.registry import Card, Promises, register
from posenc_jax.protocol.tokens import Tokens


def row_entropy(p: Float[Array, '... S']) -> Float[Array, '...']:
    """`-sum_j p_j ln p_j` in nats, with 0 ln 0 = 0."""
    p = p.astype(jnp.float32)
    return -(p * jnp.log(jnp.where(p > 0, p, 1.0))).sum(-1)


@dataclasses.dataclass(frozen=True)
class AttentionEntropy:
    """Attention entropies, summed over query rows; `merge` adds the sums of several batches.

    Attributes:
      total: the sum over rows of the entropy of each head, in nats.
      shares: the sum over rows of the entropy over its largest value, ln n for a row that sees n
        keys; 0 for a row that sees one.
      rows: how many query rows were summed.
    """

    total: Float[np.ndarray, 'layers N']
    shares: Float[np.ndarray, 'layers N']
    rows: int

    @property
    def heads(self) -> Float[np.ndarray, 'layers N']:
        """Mean entropy over rows, in nats."""
        return self.total / self.rows

    @property
    def mean(self) -> float:
        """Mean entropy over rows, heads and layers, in nats."""
        return float(self.heads.mean())

    @property
    def relative(self) -> Float[np.ndarray, 'layers N']:
        """Mean over rows of `H_i / ln n_i`, n_i the number of keys that row i sees: 1 where all
        attention is even.
        """
        return self.shares / self.rows

    def merge(self, other: 'AttentionEntropy') -> 'AttentionEntropy':
        """The sums over the rows of both."""
        return AttentionEntropy(
            self.total + other.total, self.shares + other.shares, self.rows + other.rows
        )


@register(
    'attention_entropy',
    kind='analysis',
    card=Card(
        name='attention entropy',
        door='analysis',
        equation='H_i = -sum_j a_ij ln a_ij, mean over rows, heads, layers',
        example='attention_entropy(model, tokens)',
        promises=Promises(sweep_free=False, blockwise=False),
    ),
)
def attention_entropy(
    model: Transformer,
    tokens: Int[Array, 'B L'],
    tok: Tokens | None = None,
    *,
    rows: Bool[Array, '#B L'] | None = None,
    block: int = 128,
) -> AttentionEntropy:
    """Measures the entropy of the attention of every head, in nats.

    For the query i, `H_i = -sum_j a_ij ln a_ij` over all keys j that it sees, with 0 ln 0 = 0;
    `relative` divides it by ln of their number, which is the entropy of even attention. The
    probabilities a_ij are those of the model, whatever its encoding does to the logits. One forward
    pass, in blocks of queries: O(L^2) time, O(block L) memory. Differs from the paper: nothing.

    Args:
      model: decoder or encoder.
      tokens: token ids. For more text, `merge` the results of several batches.
      tok: positions, documents and padding of the tokens; padding is not counted. None: positions
        from 0 and no padding.
      rows: which queries are counted; None for all.
      block: how many queries are evaluated at a time.

    Raises:
      ValueError: token ids that the model does not have; `rows` of another shape than the tokens;
        no row that counts; a block below 1.

    Reference: Zhang, Wang, Huang, Fang, Zhang, Deng, Li, Yu, arXiv 2412.16545.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> found = attention_entropy(
      ...     tiny_model('alibi()', layers=2, width=16), jnp.arange(14).reshape(2, 7) % 5
      ... )
      >>> found.heads.shape, found.rows, bool(0 < found.mean < np.log(7))
      ((2, 2), 14, True)
    """
    check_block('attention_entropy', block)
    tok = Tokens.of(length=tokens.shape[1]) if tok is None else tok
    counted = (
        jnp.ones(tokens.shape, bool)
        if tok.valid is None
        else jnp.broadcast_to(tok.valid, tokens.shape)
    )
    if rows is not None:
        if (
            rows.ndim != 2
            or rows.shape[1] != tokens.shape[1]
            or rows.shape[0] not in (1, tokens.shape[0])
        ):
            raise ValueError(
                f'attention_entropy: rows have shape {rows.shape}, tokens {tokens.shape}; expected '
                'the shape of the tokens, or one row for all'
            )
        counted = counted & rows
    if not (count := int(counted.sum())):
        raise ValueError(
            f'attention_entropy: none of the {counted.size} rows counts; at least one must be '
            'valid and in `rows`'
        )
    model.check_ids(tokens, tok.valid)
    attend = model.blocks[0].attention_fn
    if attend is not sharded_attend and not isinstance(attend, SelectedAttention):
        raise ValueError(
            f'attention_entropy: the layers attend by {type(attend).__name__}, whose rows are not '
            'one softmax'
        )
    sums = np.asarray(_entropies(model, tokens, tok, counted, fixed=(block,)), np.float64)
    return AttentionEntropy(sums[:, 0], sums[:, 1], count)


@compiled
def _entropies(model, block, tokens, tok, counted):
    attend = model.blocks[0].attention_fn

    def look(encoding, before, after):
        q, k, tq, tk = after
        if isinstance(attend, SelectedAttention):
            encoding, tq = attend.choose(encoding, q, k, tq, tk)
        return stream(encoding, q, k, tq, tk, counted, block)

    return capture_encodings(model, tokens, tok, look)


def stream(
    encoding: Encoding,
    q: Float[Array, 'B L N H'],
    k: Float[Array, 'B L K H'],
    tq: Tokens,
    tk: Tokens,
    counted: Bool[Array, 'B L'],
    block: int,
) -> Float[Array, '2 N']:
    """Entropy of each head of one layer, in nats and over ln of the number of visible keys, summed
    over the rows that are counted, from projected queries and keys.
    """
    k = jnp.swapaxes(k, 1, 2)

    def one(total, start, rows):
        own_tq, own = rows[1:]
        _, p, seen = attention_of(encoding, jnp.swapaxes(rows[0], 1, 2), k, own_tq, tk)
        nats, keys = row_entropy(p), seen.sum(-1)
        share = jnp.where(keys > 1, nats / jnp.log(jnp.maximum(keys, 2)), 0.0)
        both = jnp.stack([nats, share])
        return total + jnp.where(own[:, None], both, 0.0).sum((1, 3))

    return over_queries(one, jnp.zeros((2, q.shape[2])), (q, tq, counted), block)


class OfPieces(NamedTuple):
    """The result for a text that is cut into pieces: the attention entropy of the query tokens, and
    their mean loss in nats per token (without the first of them).
    """

    entropy: AttentionEntropy
    loss: float


def entropy_of_pieces(
    model: Transformer,
    tokens: Int[Array, 'B L'],
    *,
    pieces: int,
    query: int,
    sink: int = 0,
    keep: int | None = None,
    block: int = 128,
) -> OfPieces:
    """Attention entropy and loss of the last tokens of a text (the query) when the tokens before
    them are read as parallel pieces.

    The text consists of a sink, `pieces` pieces of equal length, and the query. A piece sees the
    sink and itself, the query sees everything. All pieces start behind the sink, and each is spread
    evenly over the positions of the longest (`piece_layout`). One piece gives causal attention.

    Args:
      model: causal attention with one rotary encoding of fixed frequencies.
      tokens: token ids of whole texts.
      pieces: how many pieces the tokens between sink and query are cut into; the lengths of the
        pieces differ by at most 1.
      query: number of tokens in the query, at least 2.
      sink: number of tokens in the sink.
      keep: how many pieces a query token attends to (`select_pieces`); None for all.
      block: how many queries are evaluated at a time.

    Raises:
      ValueError: fewer tokens between sink and query than pieces; a query of fewer than 2 tokens;
        a negative sink; `keep` below 1; an encoding that is not one rotary encoding (it is named).
    """
    check_model('attention_entropy', model)
    middle = tokens.shape[1] - sink - query
    if query < 2 or sink < 0 or not 1 <= pieces <= middle:
        raise ValueError(
            f'attention_entropy: a text of {tokens.shape[1]} tokens with a sink of {sink} and a '
            f'query of {query} has {middle} tokens for {pieces} pieces; expected a sink of at '
            'least 0, a query of at least 2, and at least 1 token for each of 1 or more pieces'
        )
    lengths = [len(part) for part in np.array_split(np.arange(middle), pieces)]
    layout = piece_layout(sink, lengths)
    attend = sharded_attend if keep is None else SelectedAttention(pieces, keep)
    reader, tok = with_contexts(model, layout.sees, attend), layout.tokens(query)
    entropy = attention_entropy(reader, tokens, tok, rows=tok.segment == QUERY, block=block)
    log_p = jax.nn.log_softmax(reader(tokens, tok, last=query)[:, :-1])
    loss = -jnp.take_along_axis(log_p, tokens[:, -query + 1 :, None], axis=-1).mean()
    return OfPieces(entropy, float(loss))


def labels(pieces: Sequence[int], sink: int, keep: int) -> list[tuple[str, dict]]:
    """The settings that are compared: a label and the arguments of `entropy_of_pieces` for each.

    Every number of pieces is read without a sink, with the sink, and with the sink and the best
    `keep` pieces. Settings that would repeat another are left out.

    Example:
      >>> [label for label, _ in labels([1, 4], 2, 2)]
      ['1 piece', '4 pieces', '4 pieces, sink', '4 pieces, sink, best 2']
    """
    found = []
    for count in pieces:
        name = f'{count} piece{"s" if count > 1 else ""}'
        found.append((name, dict(pieces=count)))
        if count > 1 and sink:
            found.append((f'{name}, sink', dict(pieces=count, sink=sink)))
        if count > keep > 0:
            with_sink = ', sink' if sink else ''
            found.append(
                (f'{name}{with_sink}, best {keep}', dict(pieces=count, sink=sink, keep=keep))
            )
    return found


def _reports(known: argparse.Namespace, rest: list[str]) -> Iterator[Report]:
    if not re.fullmatch(r'\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*', known.pieces, re.ASCII):
        raise ValueError(
            '--pieces are numbers of at most nine digits with commas between them, got '
            f'{quoted(known.pieces)}'
        )
    for name in ('sink', 'keep', 'query'):
        if getattr(known, name) < 0:
            raise ValueError(f'--{name} must be at least 0, got {getattr(known, name)}')
    counts = [int(count) for count in known.pieces.split(',')]
    read = subject(known, rest, known.run)
    texts = read.sequences(known)
    model, query = read.load(), known.query or texts.shape[-1] // 4
    entropies, losses = {}, {}
    for label, options in labels(counts, known.sink, known.keep):
        found = [entropy_of_pieces(model, text[None], query=query, **options) for text in texts]
        entropies[label] = functools.reduce(lambda a, b: a.merge(b), (one.entropy for one in found))
        losses[label] = float(np.mean([one.loss for one in found]))
        print(f'{label}: entropy {entropies[label].mean:.3f}, loss {losses[label]:.3f}', flush=True)

    def draw(figure):
        axis = figure.subplots()
        lines = {f'{name}: {one.mean:.2f}': one.heads.mean(-1) for name, one in entropies.items()}
        by_layer(axis, lines, first=1, label='attention entropy, nats')
        axis.set_ylim(0, None)

    yield Report(
        key='attention_entropy',
        arrays=dict(
            labels=list(entropies),
            entropy=np.stack([one.heads for one in entropies.values()]),
            loss=list(losses.values()),
        ),
        draw=draw,
        title='Attention entropy of the last tokens of a window',
        size=(5.6, 3.6),
    )


ANALYSIS = Analysis(
    key='attention_entropy',
    says='attention entropy and loss of the last tokens of a window behind parallel pieces',
    reports=_reports,
    options={
        'pieces': dict(default='1,4,16', metavar='N,N', help='numbers of pieces to compare'),
        'sink': dict(type=int, default=4, metavar='N', help='first tokens that all pieces see'),
        'keep': dict(type=int, default=2, metavar='N', help='pieces that a query keeps; 0 for all'),
        'query': dict(
            type=int,
            default=0,
            metavar='N',
            help='tokens that are measured, at the end; default: a quarter of a window',
        ),
    },
)
