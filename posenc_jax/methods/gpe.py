"""Group position encoding: separate positions for source and target, under a wait-k mask."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from posenc_jax.protocol.bounds import Count, Size
from posenc_jax.protocol.families import Mask
from posenc_jax.protocol.masks import causal_mask
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import check_integers


def gpe_ids(
    group: Int[Array, '#B L'], document: Int[Array, '#B L'] | None = None, phi: int = 0
) -> Int[Array, '#B L']:
    """Index of a source token among its document's source tokens; `phi + index` for target tokens.

    The source may come before the target, or both may be interleaved as they arrive: the ids are
    the same. No id depends on a later token.

    Args:
      group: 0 source, 1 target, -1 neither (padding).
      document: equal within a packed document, contiguous; None for one a row.
      phi: id of the first target token.
    """
    group, document, index = _with_index(group, document)
    earlier = functools.partial(_counted_before, start=_document_start(document, index))
    return jnp.where(group == 1, phi + earlier(group == 1), earlier(group == 0)).astype(jnp.int32)


def gpe_wait_k_reads(
    group: Int[Array, '#B L'],
    segment: Int[Array, '#B L'],
    k: int,
    document: Int[Array, '#B L'] | None = None,
) -> Int[Array, '#B L']:
    """The number of source segments that each target token may see under wait-k.

    It is k more than the segment number of the target token that it predicts, which is the next one
    of its document; the last target token uses its own segment. The value has no meaning for source
    tokens.

    Args:
      group: 0 source, 1 target, -1 neither (padding).
      segment: number, from 0, of the segment (word) within the group; 0 is the prompt, the last one
        the end marker.
      k: source segments that are read before the first target segment.
      document: equal within a packed document, contiguous; None for one a row.
    """
    group, document, index = _with_index(group, document)
    segment, length = jnp.broadcast_to(segment, group.shape), group.shape[1]
    from_here = jax.lax.cummin(jnp.where(group == 1, index, length), axis=1, reverse=True)
    following = jnp.pad(from_here[:, 1:], ((0, 0), (0, 1)), constant_values=length)
    at = lambda a, where: jnp.take_along_axis(a, where, axis=1)
    there = jnp.minimum(following, length - 1)
    predicts = (following < length) & (at(document, there) == document)
    return k + at(segment, jnp.where(predicts, there, index))


def gpe_loss(
    logits: Float[Array, 'B L V'],
    tokens: Int[Array, 'B L'],
    group: Int[Array, '#B L'],
    segment: Int[Array, '#B L'],
    document: Int[Array, '#B L'] | None = None,
) -> Float[Array, '']:
    """Mean cross-entropy of the target tokens, each with the logits of the row that predicts it.

    That row is the target token before it; for the first target token of a document it is the first
    source token after the source prompt (not the last source token). A target without such a row
    before it does not count.

    Args:
      logits: of every row, also of the source.
      tokens: ids of the same rows.
      group, segment, document: as for `gpe_wait_k_reads`.
    """
    rows = _predicting_rows(group, segment, document)
    counts = jnp.broadcast_to(rows >= 0, tokens.shape)
    rows = jnp.broadcast_to(jnp.maximum(rows, 0), tokens.shape)
    read = jnp.take_along_axis(logits, rows[..., None], axis=1)
    nll = optax.softmax_cross_entropy_with_integer_labels(read, tokens)
    return jnp.where(counts, nll, 0.0).sum() / jnp.maximum(counts.sum(), 1)


def _predicting_rows(group, segment, document):
    """The row whose logits predict a token; -1 for source tokens and tokens without such a row."""
    group, document, index = _with_index(group, document)
    start = _document_start(document, index)
    content = (group == 0) & (segment > 0)
    first = content & (_counted_before(content, start) == 0)
    latest = lambda flags: jax.lax.cummax(jnp.where(flags, index, -1), axis=1)
    before = jnp.pad(latest(group == 1)[:, :-1], ((0, 0), (1, 0)))
    rows = jnp.where(_counted_before(group == 1, start) > 0, before, latest(first))
    return jnp.where((group == 1) & (rows >= start), rows, -1)


def _document_start(document, index):
    starts = jnp.diff(document, axis=1, prepend=document[:, :1]) != 0
    return jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def _counted_before(flags, start):
    """The number of earlier tokens of the document that have the flag."""
    before = jnp.cumsum(flags, axis=1) - flags
    return before - jnp.take_along_axis(before, start, axis=1)


def _with_index(group, document):
    index = jnp.arange(group.shape[1], dtype=jnp.int32)[None]
    return jnp.broadcast_arrays(group, 0 * index if document is None else document, index)


@register(
    'gpe',
    kind='encoding',
    card=Card(
        name='group position encoding',
        example='gpe(k=2, source=8) | rope()',
        share='model',
        causal_only=True,
        relative=True,
    ),
)
class GPE(Mask):
    """Counts positions of source and target separately; the target sees the source read so far.

    `p = 0 .. n-1 of source`, `p = phi .. phi+m-1 of target`. The mask is causal; source tokens see
    no target; target segment g may see the source segments 0 .. k+g-1, and since a row predicts the
    next token, each target row has the view of the row after it (the last one its own). The task
    hands over positions with two components, [#B, L, 2]: group, 0 source or 1 target, and number of
    the segment (word) within the group, from 0. Tokens may stand as source then target, as in
    training, or in the order of arrival, each source token before the first target row that sees
    it: ids and views are the same, so one cache of tokens as they are read and written replaces the
    paper's two. Ids depend on no later token; the view of a target row depends on the segment of
    the next, which must be known when the row is fed in. The loss is `gpe_loss` (no task here
    streams yet). Differs from the paper: nothing in ids and mask; `source` is a short form for
    words of one token.

    Args:
      k: source segments read before the first target segment, the source prompt among them; at
        least 1. A large k sees all.
      phi: id of the first target token; the number of source tokens n gives the batch layout.
      source: how many tokens of a document are its source, where positions have one component:
        every token is then a segment, ids count tokens whatever the positions were, and the last
        row too has the view of the row that would follow.

    Raises:
      ValueError: at call, positions of another shape, fractional ones, one component without
        `source` or two with it, groups other than 0 and 1, negative segments (where positions are
        traced, a group other than 1 is the source).

    Reference: Tong et al., arXiv 2505.16983.

    Example:
      >>> import posenc_jax as pj
      >>> encoding = pj.make('gpe(k=1)')
      >>> tok = encoding.place(pj.Tokens.of(positions=[[[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]]))
      >>> tok.pos.tolist(), encoding.mask(tok, tok)[0, 0, 3:].astype(int).tolist()
      ([[0, 1, 2, 0, 1]], [[1, 1, 0, 1, 0], [1, 1, 0, 1, 1]])
    """

    traits = frozenset({'decides_causality', 'leaves_gaps', 'reads_other_tokens'})

    def __init__(self, k: Size, phi: Count = 0, source: Size | None = None):
        self.k, self.phi, self.source = k, phi, source

    def place(self, tok, *, key=None):
        if self.source is not None:
            if tok.pos.ndim != 2:
                raise ValueError(
                    f'gpe(source={self.source}) takes positions [B, L], got {tok.pos.shape}; '
                    'leave out `source`'
                )
            group = (tok.rank >= self.source).astype(jnp.int32)
            word = jnp.where(group == 1, tok.rank - self.source, tok.rank)
            reads = self.k + word + 1
        else:
            wanted = 'group and segment, or `source` for a source of one length'
            check_integers(f'gpe needs integers [B, L, 2], {wanted}', tok.pos, (2,))
            group, word = tok.pos[..., 0], tok.pos[..., 1]
            _check(group, word, tok.valid)
            group = jnp.where(group == 1, 1, 0)
        if tok.valid is not None:
            group = jnp.where(tok.valid, group, -1)
        if self.source is None:
            reads = gpe_wait_k_reads(group, word, self.k, tok.segment)
        ids = gpe_ids(group, tok.segment, self.phi)
        feats = {'target': group == 1, 'word': word, 'reads': reads}
        feats = {name: jnp.broadcast_to(a, ids.shape)[..., None] for name, a in feats.items()}
        return dataclasses.replace(tok, pos=ids).with_feats(gpe=feats)

    def allow(self, tq, tk):
        query, key = ({name: a[..., 0] for name, a in tok.feats['gpe'].items()} for tok in (tq, tk))
        read = ~query['target'][:, :, None] | (key['word'][:, None, :] < query['reads'][:, :, None])
        own = jnp.where(key['target'][:, None, :], query['target'][:, :, None], read)
        return causal_mask(tq.index, tk.index) & own[:, None]

    def may_see(self, tq, tk):
        return tk.index_low <= tq.index_high


def _check(group, word, valid):
    """Raises where known positions of real tokens are no groups and segments."""
    if any(isinstance(a, jax.core.Tracer) for a in (group, word, valid)):
        return
    real = True if valid is None else valid
    if bool((wrong := real & (group != 0) & (group != 1)).any()):
        wrong, group = jnp.broadcast_arrays(wrong, group)
        raise ValueError(f'gpe: group {int(group[wrong][0])}; 0 is the source and 1 the target')
    if bool((wrong := real & (word < 0)).any()):
        raise ValueError(
            f'gpe: segment {int(jnp.where(wrong, word, 0).min())}; segments of a group count from 0'
        )
