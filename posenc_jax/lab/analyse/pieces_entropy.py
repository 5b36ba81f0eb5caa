"""Attention entropy and loss of the end of a text whose middle is read as parallel pieces."""

import argparse
import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from posenc_jax.lab.analyse.attention_entropy import AttentionEntropy, attention_entropy
from posenc_jax.lab.analyse.protocol import Analysis
from posenc_jax.lab.analyse.report import Report, by_layer
from posenc_jax.lab.analyse.subjects import subject
from posenc_jax.lab.decoding.contexts import QUERY, check_model, with_contexts
from posenc_jax.lab.decoding.parallel_context_entropy import SelectedAttention, piece_layout
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.protocol.errors import quoted


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
