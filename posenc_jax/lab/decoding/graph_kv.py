"""Graph-KV: cached segments that are nodes of a graph; targets attend to their sources."""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal

import numpy as np

from posenc_jax.lab.decoding import contexts, read_contexts
from posenc_jax.lab.decoding.cached_contexts import (
    PREFIX,
    QUERY,
    Layout,
    Piece,
    check_contexts,
    check_lengths,
)
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, Promises, register

Edge = tuple[int, int]
Places = Literal['shared', 'sequential']
PLACES = ('shared', 'sequential')


def graph_sources(
    count: int, edges: Sequence[Edge], places: Places = 'shared'
) -> dict[int, tuple[int, ...]]:
    """The sources of every target, in ascending order.

    Args:
      count: number of segments.
      edges: pairs (source, target) of segment numbers.
      places: with 'shared' a segment is either a source or a target; with 'sequential' it may be
        both, since it is then encoded twice.

    Raises:
      ValueError: an edge that is not a pair of integers, has a segment that does not exist, or is
        given twice; with 'shared' a segment that is both source and target, e.g. in a cycle.

    Example:
      >>> graph_sources(5, [(0, 3), (1, 3), (1, 4)])
      {3: (0, 1), 4: (1,)}
    """
    check_choice('graph_kv: places', places, PLACES)
    edges = [tuple(np.ravel(edge).tolist()) for edge in edges]
    for edge in edges:
        if len(edge) != 2 or not all(isinstance(end, Integral) for end in edge):
            raise ValueError(f'graph_kv: an edge is (source, target), two integers, got {edge}')
        if not all(0 <= end < count for end in edge):
            raise ValueError(f'graph_kv: the edge {edge} leaves the segments 0 .. {count - 1}')
    if len(set(edges)) != len(edges):
        twice = next(edge for edge in edges if edges.count(edge) > 1)
        raise ValueError(f'graph_kv: the edge {twice} is given {edges.count(twice)} times')
    both = {source for source, _ in edges} & {target for _, target in edges}
    if both and places == 'shared':
        number = min(both)
        why = 'an edge to itself' if (number, number) in edges else 'edges in and out'
        raise ValueError(
            f'graph_kv: segment {number} has {why}, but with shared positions a segment is either '
            "a source or a target; give it twice, or use places='sequential', which encodes it as "
            'both'
        )
    targets = sorted({target for _, target in edges})
    return {
        target: tuple(sorted(source for source, other in edges if other == target))
        for target in targets
    }


def complete_edges(count: int, sources: int | None = None) -> list[Edge]:
    """The edges from every source to every chunk, the source itself included.

    Args:
      count: number of chunks.
      sources: number of sources, which are the last chunks; None for all chunks.

    Raises:
      ValueError: `sources` is not in 1 .. count.
    """
    sources = count if sources is None else sources
    if not isinstance(sources, Integral) or not 1 <= sources <= count:
        raise ValueError(
            f'graph_kv: sources must be an integer and lie in 1 .. {count} of {count} chunks, '
            f'got {sources}'
        )
    return [(source, target) for target in range(count) for source in range(count - sources, count)]


def graph_layout(
    prefix: int, lengths: Sequence[int], edges: Sequence[Edge], *, targets_see_prefix: bool = False
) -> Layout:
    """The 'shared' positions and the mask: every source begins behind the prefix, and every target
    behind its longest source.

    A segment without edges is treated like a source. The query begins behind the largest position.

    Args:
      prefix: number of tokens of the prefix.
      lengths: numbers of tokens of the segments.
      edges: pairs (source, target) of segment numbers.
      targets_see_prefix: off in the paper, where only the query sees the prefix.

    Raises:
      ValueError: no segment, lengths that are not positive integers, a prefix below 0, or the
        errors of `graph_sources`.
    """
    check_lengths('graph_layout', prefix, lengths)
    count = len(lengths)
    sees = np.eye(count + 2, dtype=bool)
    sees[QUERY] = True
    starts = [prefix] * count
    for target, sources in graph_sources(count, edges).items():
        starts[target] = prefix + max(lengths[source] for source in sources)
        sees[1 + target, [1 + source for source in sources]] = True
        sees[1 + target, PREFIX] = targets_see_prefix
    ids = [np.arange(prefix), *(start + np.arange(n) for start, n in zip(starts, lengths))]
    return Layout(
        tuple(ids), max([prefix, *(start + n for start, n in zip(starts, lengths))]), sees
    )


def encode(
    model: Transformer,
    prefix,
    segments: Sequence,
    edges: Sequence[Edge] | None = None,
    *,
    places: Places = 'shared',
    sources: int | None = None,
    targets_see_prefix: bool = False,
) -> tuple[Piece, ...]:
    """Encodes the prefix and the segments of a graph as cached pieces for `join`. A source, or a
    segment without edges, is encoded alone. A target also sees its sources.

    Args:
      model: causal attention with one rotary encoding of fixed frequencies.
      prefix: token ids [n] or [B, n], or [] for none.
      segments: token ids, [n] or [B, n] each.
      edges: pairs (source, target) of segment numbers. None with 'sequential': every segment is a
        source of every segment.
      places: 'shared': the pieces are the segments in order. A source begins behind the prefix, a
        target behind its longest source. 'sequential': every source has a copy that is encoded
        alone, and every target a copy that sees its sources, which then stand one after the other
        from position 0. The pieces are the copies of the sources, then those of the targets, at
        consecutive positions.
      sources: with 'sequential' and without edges, the number of sources, which are the last
        segments (for a retriever that puts its best results last); None for all.
      targets_see_prefix: off in the paper, where only the query sees the prefix.

    Raises:
      ValueError: no segments, ids outside the vocabulary, the errors of `graph_sources`, 'shared'
        without edges ([] is parallel encoding), or a model whose layers are not causal attention
        with one rotary encoding (the message names the part at fault).
    """
    user = 'graph_kv'
    check_choice('graph_kv: places', places, PLACES)
    tokens = check_contexts(user, prefix, segments, model.cfg.vocab_size)
    count, lengths = len(segments), [a.shape[1] for a in tokens[1:]]
    if sources is not None and (edges is not None or places == 'shared'):
        raise ValueError(
            "graph_kv: sources chooses the sources of places='sequential' where no edges are given"
        )
    if edges is None:
        if places == 'shared':
            raise ValueError("graph_kv needs edges for places='shared'; [] is parallel encoding")
        edges = complete_edges(count, sources)
    grouped, shared = graph_sources(count, edges, places), places == 'shared'
    read = lambda numbers, ids, before=(): dict(
        zip(
            numbers,
            read_contexts.encode(user, model, [tokens[1 + n] for n in numbers], ids, before),
        )
    )
    ids = [np.arange(n) for n in lengths]
    if shared:
        ids = graph_layout(tokens[0].shape[1], lengths, edges).ids[1:]
    (first,) = read_contexts.encode(user, model, tokens[:1], [np.arange(tokens[0].shape[1])])
    of_prefix = [first] if targets_see_prefix else []
    # With 'sequential' a source that is a target too has a copy that is encoded alone.
    sources_of_any = set() if shared else {source for of in grouped.values() for source in of}
    alone = sorted(sources_of_any | set(range(count)) - set(grouped))
    copies = read(alone, [ids[n] for n in alone])
    base, encoded = first.length if targets_see_prefix else 0, {}
    for of, targets in _by_sources(grouped).items():
        behind, start = [copies[source] for source in of], 0
        if not shared:
            behind, start = _in_a_row(model, behind, base), base + sum(lengths[n] for n in of)
        own = [start + ids[target] for target in targets]
        encoded |= read(targets, own, [*of_prefix, *behind])
    if shared:
        encoded |= copies
        return first, *(encoded[number] for number in range(count))
    in_order = [*copies.values(), *(encoded[target] for target in sorted(encoded))]
    return first, *_in_a_row(model, in_order, first.length)


def _by_sources(grouped):
    """The targets of each tuple of sources; these targets are encoded together."""
    alike = {}
    for target, of in grouped.items():
        alike.setdefault(of, []).append(target)
    return alike


def _in_a_row(model, pieces, start):
    """The pieces moved to consecutive positions from `start` on."""
    placed = []
    for piece in pieces:
        placed.append(contexts.moved(model, piece, start + np.arange(piece.length)))
        start += piece.length
    return placed


@register(
    'graph_kv',
    kind='cache',
    card=Card(
        name='Graph-KV',
        door='cache, mask',
        equation='target t sees itself causally and all keys of its sources; sources at P .., t '
        'at P + max len of its sources',
        example='graph_kv.join(model, pieces, capacity=64)',
        use_when=(
            'You have pieces of text with links between them, such as sources and '
            'targets, in front of a question.'
        ),
        promises=Promises(sweep_free=False),
    ),
)
def join(model: Transformer, pieces: Sequence[Piece], *, capacity: int) -> Cache:
    """A decode cache of the segments of a graph for a query, which sees the prefix, all sources and
    all targets.

    In `encode` a target saw its sources and itself only. So its keys and values contain
    information from its sources, and the query receives two steps of message passing. With 'shared'
    positions all sources begin at the same position, and their order does not matter. With
    'sequential' positions all pieces have consecutive positions. The same model reads the cache
    (`read`, `decode_step`). Differs from the paper: 'sequential' with only some of the edges is
    ours; the sources of a target then have consecutive positions from 0.

    Args:
      model: the model that encoded the pieces.
      pieces: from `encode`.
      capacity: number of slots, for prefix, segments, query and generated tokens.

    Raises:
      ValueError: no pieces, or pieces that do not fit the capacity or the model; the message gives
        the numbers.

    Reference: Wang, Wang, Li, Liu, Miao, Wang, Li, arXiv 2506.07334.

    Example:
      >>> from posenc_jax.lab.decoding.read_contexts import read
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> model = tiny_model('rope()', vocab_size=9)
      >>> cache = join(model, encode(model, [1], [[2, 3], [4], [5]], [(0, 2), (1, 2)]), capacity=8)
      >>> logits, cache = read(model, cache, np.array([[6, 7]]))
      >>> cache.tokens[0].pos.tolist()
      [[0, 1, 2, 1, 3, 4, 5, 6]]
    """
    if contexts.has_part(model, contexts.ContextMask):
        raise ValueError(
            'graph_kv: expected the model that encoded the pieces, got one with the context mask '
            'of another method'
        )
    start = max([0, *(piece.ids.max() + 1 for piece in pieces if piece.length)])
    return contexts.join('graph_kv', model, pieces, capacity=capacity, start=start)
