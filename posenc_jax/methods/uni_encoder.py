"""Uni-Encoder: one context and many candidates, all at the positions right after the context."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.protocol.bounds import CONTEXT
from posenc_jax.protocol.encoding import Encoding, drawn_normal
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import check_integers, known_range, lookup_rows

Shape = Literal['arrow', 'diag', 'square']
PADDING = -1  # part number of padding


def uni_encoder_ids(context: int, candidates: Sequence[int]) -> Int[np.ndarray, 'L 2']:
    """Position id and part of each token.

    The context is part 0 at `0 .. n-1`; candidate c is part c+1 at `n .. n + its length - 1`.

    Args:
      context: n, tokens of the context with its markers.
      candidates: tokens of each candidate with its markers.

    Raises:
      ValueError: no context, no candidate, or an empty one.
    """
    if not all(
        isinstance(n, numbers.Integral) and n >= 1 for n in (context, *candidates)
    ) or not len(candidates):
        found = f'{context} and {list(candidates)}'
        raise ValueError(
            f'uni_encoder needs a context and candidates of at least one token, got {found}'
        )
    ids = np.concatenate(
        [np.arange(context), *(np.arange(context, context + size) for size in candidates)]
    )
    parts = np.repeat(np.arange(len(candidates) + 1), [context, *candidates])
    return np.stack([ids, parts], axis=-1).astype(np.int32)


def uni_encoder_layout(
    contexts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    *,
    cls: int,
    sep: int,
    pad: int = 0,
    max_len: int = 256,
) -> dict[str, np.ndarray]:
    """`[CLS] context [SEP]`, then `[CLS] candidate [SEP]` per candidate, padded on the right.

    In training the candidates of every row are the golden responses of all rows of the batch; the
    golden candidate of row b is number b.

    Args:
      contexts: token ids of each row's context.
      candidates: token ids of each row's candidates.
      cls, sep, pad: ids of the markers and of padding.
      max_len: tokens that a context or candidate may have, markers not counted; the paper's 256.

    Returns:
      `tokens` [B, L], `positions` [B, L, 2] as `uni_encoder_ids` has them, part -1 for padding, and
      `valid` [B, L]; all but `tokens` are what `Tokens.of` takes.

    Raises:
      ValueError: rows that disagree, a row without candidates, a text longer than max_len, or ids
        that are no token ids.
    """
    if len(contexts) != len(candidates) or not len(contexts):
        found = f'{len(contexts)} contexts and {len(candidates)} lists'
        raise ValueError(f'uni_encoder_layout takes candidates for every context, got {found}')
    _check_tokens('cls, sep and pad', [cls, sep, pad])
    rows, positions = [], []
    for number, (context, own) in enumerate(zip(contexts, candidates)):
        named = {'context': context, **{f'candidate {c}': text for c, text in enumerate(own)}}
        for what, text in named.items():
            if len(text) > max_len:
                found = f'the {what} of row {number} has {len(text)} tokens'
                raise ValueError(f'uni_encoder_layout: {found}, at most {max_len} are read')
            _check_tokens(f'the {what} of row {number}', text)
        texts = [[cls, *text, sep] for text in (context, *own)]
        positions.append(uni_encoder_ids(len(texts[0]), [len(text) for text in texts[1:]]))
        rows.append(np.concatenate(texts))
    width = max(map(len, rows))
    tokens = np.full((len(rows), width), pad, np.int32)
    ids = np.tile(np.array([0, PADDING], np.int32), (len(rows), width, 1))
    valid = np.arange(width) < np.array([[len(row)] for row in rows])
    tokens[valid], ids[valid] = np.concatenate(rows), np.concatenate(positions)
    return {'tokens': tokens, 'positions': ids, 'valid': valid}


def uni_encoder_masks(
    tokens: Int[np.ndarray, 'B L'],
    rng: np.random.Generator,
    *,
    mask: int,
    vocab_size: int,
    keep: Sequence[int],
    rate: float = 0.15,
) -> tuple[Int[np.ndarray, 'B L'], Bool[np.ndarray, 'B L']]:
    """Masked input tokens, and which tokens are to be predicted (`masked` of `uni_encoder_loss`).

    The paper masks 15 %. We follow BERT: 80 % of the chosen tokens become `mask`, 10 % a random
    token, and 10 % stay as they are.

    Args:
      tokens: of `uni_encoder_layout`.
      rng: of numpy.
      mask: the token that stands for what is hidden.
      vocab_size: V; any token is one of 0 .. V-1.
      keep: tokens that are never chosen: the markers and padding.
      rate: share of the others that are chosen, on average.

    Raises:
      ValueError: a share outside 0 .. 1, or a mask or tokens outside the vocabulary.
    """
    tokens = np.asarray(tokens)
    if not 0 <= rate <= 1:
        raise ValueError(f'uni_encoder_masks: rate is a share between 0 and 1, got {rate}')
    for what, found in (('mask', np.array([mask])), ('a token', tokens)):
        low, high = found.min(initial=0), found.max(initial=0)
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f'uni_encoder_masks: {what} lies in 0 .. {vocab_size - 1}, got '
                f'{low if low < 0 else high}'
            )
    chosen = (rng.random(tokens.shape) < rate) & ~np.isin(tokens, keep)
    share, anything = rng.random(tokens.shape), rng.integers(vocab_size, size=tokens.shape)
    instead = np.where(share < 0.8, mask, np.where(share < 0.9, anything, tokens))
    return np.where(chosen, instead, tokens).astype(tokens.dtype), chosen


def uni_encoder_means(
    hidden: Float[Array, 'B L D'], part: Int[Array, '#B L'], count: int
) -> Float[Array, 'B C D']:
    """Mean of the vectors of each of `count` candidates, markers included, float32.

    It is NaN for candidates that a row does not have.
    """
    member = (part[..., None] == jnp.arange(1, count + 1)).astype(jnp.float32)
    member = jnp.broadcast_to(member, (len(hidden), *member.shape[1:]))
    summed = jnp.einsum('blc,bld->bcd', member, hidden.astype(jnp.float32))
    return summed / member.sum(1)[..., None]


def uni_encoder_loss(
    scores: Float[Array, 'B C'],
    golden: Int[Array, 'B'],
    logits: Float[Array, 'B L V'] | None = None,
    targets: Int[Array, 'B L'] | None = None,
    masked: Bool[Array, 'B L'] | None = None,
) -> Float[Array, '']:
    """Cross-entropy of the golden candidate, plus that of the masked tokens if they are given.

    Both terms have the same weight.

    Args:
      scores: -inf where there is no candidate.
      golden: which candidate of each row is right.
      logits, targets, masked: of the tokens; which of them were masked (the paper masks 15 %).

    Raises:
      ValueError: shapes or types that do not fit, logits without targets and masked; where they are
        known, golden candidates outside 0 .. C-1 or targets outside 0 .. V-1.
    """
    golden = golden if isinstance(golden, jax.Array) else np.asarray(golden)
    if scores.ndim != 2 or golden.shape != scores.shape[:1]:
        found = f'{scores.shape} and {golden.shape}'
        raise ValueError(
            'uni_encoder_loss takes scores [B, C] and the golden candidate of each row [B], got '
            f'{found}'
        )
    _check_labels('the golden candidate', golden, scores.shape[1])
    loss = optax.softmax_cross_entropy_with_integer_labels(scores, golden).mean()
    given = (logits, targets, masked)
    if all(a is None for a in given):
        return loss
    shapes = [None if a is None else a.shape for a in given]
    if None in shapes or len(shapes[0]) != 3 or not shapes[0][:2] == shapes[1] == shapes[2]:
        found = ', '.join(map(str, shapes))
        raise ValueError(
            'uni_encoder_loss takes logits [B, L, V], targets [B, L] and masked [B, L] '
            f'together, got {found}'
        )
    _check_labels('a target', targets, shapes[0][2])
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return loss + (nll * masked).sum() / jnp.maximum(masked.sum(), 1)


def _check_tokens(where, ids):
    """Raises unless all values are token ids; an empty list is allowed."""
    ids = np.asarray(ids if len(ids) else [0])
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0:
        raise ValueError(
            f'uni_encoder_layout: token ids are integers of at least 0, got {ids.tolist()} in '
            f'{where}'
        )


def _check_labels(what, labels, count):
    """Raises unless these are integers, and known ones lie in 0 .. count-1."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f'uni_encoder_loss: {what} is an integer, got {labels.dtype}')
    if not isinstance(labels, jax.core.Tracer):
        low, high = int(np.asarray(labels).min()), int(np.asarray(labels).max())
        if low < 0 or high >= count:
            raise ValueError(
                f'uni_encoder_loss: {what} lies in 0 .. {count - 1}, got {low if low < 0 else high}'
            )


@register(
    'uni_encoder',
    kind='encoding',
    card=Card(
        name='Uni-Encoder',
        example='uni_encoder() | rope()',
        use_when=(
            'You score many candidates for one context in a single pass; the measured '
            'claim about the time is open.'
        ),
        share='model',
        relative=True,
        needs_training=True,
    ),
)
class UniEncoder(Encoding):
    """Places all candidates right after the context, hides them from each other, adds type vectors.

    `p = 0 .. n-1 of the context`, `p = n, n+1, ... of each candidate`. The vectors of tokens get
    `E[0]` in the context and `E[1]` in candidates. With 'arrow' context rows see everything and a
    candidate sees the context and itself; 'diag' sees only its own part (the attention of a
    bi-encoder, of which `CandidateScorer` lacks the product with the context), 'square' everything.
    The layout hands over positions [#B, L, 2] of components (id, part), part 0 the context and c
    the c-th candidate, as `uni_encoder_layout` makes them; positions [#B, L] are all context. Meant
    for models of kind 'encoder'; `CandidateScorer` is such a model with its head. With 'arrow' the
    context reads all candidates, so a score may change with the set. Nothing decodes with a cache
    here, though in a decoder the mask would hold as it stands. The bounds of a tile do not tell
    which parts it holds, so no tile is skipped. Differs from the paper: texts that are too long are
    refused, where the paper cuts them. `uni_encoder_masks` masks tokens for the loss; no task here
    trains with it.

    Args:
      shape: 'arrow', 'diag' or 'square'.

    Raises:
      ValueError: at call, positions of another shape, fractional ones, and negative parts of real
        tokens (where positions are traced, such tokens are a part of their own).

    Reference: Song, He, Yu, Fang, Cui, Lan, arXiv 2106.01263.

    Example:
      >>> import posenc_jax as pj
      >>> encoding = pj.make('uni_encoder()', model_dim=4)
      >>> tok = encoding.place(pj.Tokens.of(positions=uni_encoder_ids(2, [1, 2])[None]))
      >>> tok.pos.tolist(), encoding.mask(tok, tok)[0, 0].astype(int).tolist()[2:4]
      ([[0, 1, 2, 2, 3]], [[1, 1, 1, 0, 0], [1, 1, 0, 1, 1]])
    """

    traits = frozenset({'leaves_gaps'})

    def __init__(self, shape: Shape = 'arrow', model_dim: int = CONTEXT, rngs: nnx.Rngs = CONTEXT):
        self.shape = shape
        self.types = drawn_normal(rngs, (2, model_dim), 0.02, (None, 'width'))

    def place(self, tok, *, key=None):
        wanted = '[B, L, 2], id and part, or [B, L], all context'
        check_integers(f'uni_encoder needs integer positions {wanted}', tok.pos, (), (2,))
        ids, part = tok.pos, jnp.zeros_like(tok.pos)
        if tok.pos.ndim == 3:
            ids, part = tok.pos[..., 0], tok.pos[..., 1]
        low, _ = known_range(part, tok.valid) or (0, 0)
        if low < 0:
            raise ValueError(
                f'uni_encoder: part {low}; the context is part 0, candidates count from 1'
            )
        return dataclasses.replace(tok, pos=ids).with_feats(uni_encoder=part[..., None])

    def embed(self, x, tok):
        rows = (tok.feats['uni_encoder'][..., 0] > 0).astype(jnp.int32)
        added = lookup_rows(self.types[...], rows).astype(x.dtype)
        return x + (added if tok.valid is None else jnp.where(tok.valid[..., None], added, 0))

    def mask(self, tq, tk):
        query, key = tq.feats['uni_encoder'], jnp.swapaxes(tk.feats['uni_encoder'], 1, 2)
        own = query == key
        return (own if self.shape == 'diag' else own | (query == 0) | (key == 0))[:, None]


class SquareUniEncoder(UniEncoder, where=lambda given: given['shape'] == 'square'):
    """A `UniEncoder` in which all tokens see each other."""

    traits = frozenset()
    mask = Encoding.mask
