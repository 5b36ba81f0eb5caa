"""Bilevel positional encoding: one encoding within sentences, and one between sentences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from posenc_jax.protocol.bounds import CONTEXT, Size
from posenc_jax.protocol.encoding import Encoding, drawn_normal
from posenc_jax.protocol.families import alibi_slopes
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import check_integers, known_range, lookup_rows


def bipe_ids(
    separator: Bool[Array, '#B L'], order: Int[Array, '#B L'] | None = None
) -> tuple[Int[Array, '#B L'], Int[Array, '#B L']]:
    """`(intra, inter)`: index within the segment, and number of the segment in its document.

    A separator ends a segment and belongs to it, so `inter` counts the separators before the token.
    No id depends on the token itself or a later one.

    Args:
      separator: which tokens end a segment; False for padding.
      order: which real token of its document each is, 0, 1, ..., and -1 for padding; None for one
        document a row.
    """
    index = jnp.arange(separator.shape[1], dtype=jnp.int32)[None]
    separator, order, index = jnp.broadcast_arrays(
        separator, index if order is None else order, index
    )
    latest = lambda flags: jax.lax.cummax(jnp.where(flags, index, 0), axis=1)
    at = lambda a, where: jnp.take_along_axis(a, where, axis=1)
    before = jnp.cumsum(separator, axis=1, dtype=jnp.int32) - separator
    document = latest(order == 0)
    ended = jax.lax.cummax(jnp.where(separator, index, -1), axis=1)
    # The last separator before the token.
    ended = jnp.pad(ended[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    first = jnp.where(ended < document, 0, at(order, jnp.maximum(ended, 0)) + 1)
    return jnp.maximum(order - first, 0), before - at(before, document)


def bipe_slopes(heads: int, scale: float = 96.0) -> np.ndarray:
    """The slopes of BiPE-ALiBi, float64 [N]: ALiBi's slopes times `scale`, 96 as released.

    They are larger than ALiBi's because there are fewer segments than tokens.
    """
    if scale <= 0:
        raise ValueError(f'bipe_slopes: scale must be positive, got {scale}')
    return scale * alibi_slopes(heads)


@register(
    'bipe',
    kind='encoding',
    card=Card(
        name='BiPE',
        example='bipe() | rope()',
        use_when=(
            'You read longer texts with a rotary model that can be trained from the '
            'start; with ALiBi in place of RoPE short segments, such as words, are better.'
        ),
        share='model',
        needs_training=True,
    ),
)
class BiPE(Encoding):
    """Adds a learned vector per index in a segment; the segment's number becomes the position.

    `x_t + E[min(intra_t, K - 1)]`, `p_t = inter_t`. The next part of the chain encodes p:
    `bipe(...) | rope()` is BiPE-RoPE, and `bipe(...) | alibi(slopes=(24.0, 6.0, 1.5, 0.375))`, with
    the slopes of `bipe_slopes`, is BiPE-ALiBi. Segments (sentences) end with the token ids
    `separators` (bytes: `(10, 46)` are line break and full stop). The model hands over token ids in
    training, evaluation and decoding; a decoding step then computes the positions of all tokens in
    the cache again. Without `separators` the task gives positions [#B, L, 2] of components (intra,
    inter), e.g. `hirope_ids` of units; positions [#B, L] are one segment. Indices from K on
    share the last vector, as in the released code. Differs from the paper: counts start again in
    each packed document, and padding is not counted.

    Args:
      separators: token ids that end a segment; None where the task gives positions.
      train_len: K, rows of the table; the trained length, from the model.

    Raises:
      ValueError: no separators in a tuple, negative or repeated ones; at call, tokens without
        ids, or positions of several components, where there are separators; without separators
        fractional positions or those of another shape, or negative ones (where these are traced,
        the table gives NaN).

    Reference: He, Feng, Luo, Yang, Wang, Xu, Zhang, Yang, He, arXiv 2401.16421.

    Example:
      >>> import posenc_jax as pj
      >>> encoding = pj.make(
      ...     'bipe(separators=(10, 46)) | rope()', head_dim=8, model_dim=8, train_len=16
      ... )
      >>> tok = encoding.place(pj.Tokens.of(ids=[[72, 105, 46, 32, 66, 121, 101, 46, 10, 72]]))
      >>> tok.pos.tolist(), tok.feats['bipe'][..., 0].tolist()
      ([[0, 0, 0, 1, 1, 1, 1, 1, 2, 3]], [[0, 1, 2, 0, 1, 2, 3, 4, 0, 0]])
    """

    def __init__(
        self,
        separators: tuple[int, ...] | None = None,
        train_len: Size = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if separators is not None and (
            not separators or min(separators) < 0 or len(set(separators)) < len(separators)
        ):
            raise ValueError(
                'bipe separators must be distinct token ids of at least 0, one or more, got '
                f'{separators}'
            )
        self.separators, self.train_len = separators, train_len
        self.vectors = drawn_normal(rngs, (train_len, model_dim), 0.02, ('positions', 'width'))

    @property
    def traits(self):
        return frozenset({'reads_ids'} if self.separators is not None else ())

    def place(self, tok, *, key=None):
        if self.separators is not None:
            if tok.ids is None:
                raise ValueError(
                    f'bipe(separators={self.separators}) finds segments by token ids, which these '
                    'tokens do not have: give Tokens.of(ids=...), or leave out `separators` and '
                    'give positions [B, L, 2], intra and inter'
                )
            if tok.pos.ndim != 2:
                raise ValueError(
                    f'bipe(separators={self.separators}) makes the positions itself and would lose '
                    f'the components of {tok.pos.shape}: give positions [B, L], or write what '
                    'reads them before it, or leave out `separators`'
                )
            ends = jnp.isin(tok.ids, jnp.asarray(self.separators))
            order = tok.rank
            if tok.valid is not None:
                ends, order = ends & tok.valid, jnp.where(tok.valid, order, -1)
            intra, inter = bipe_ids(ends, order)
        else:
            pos = tok.pos
            wanted = '[B, L], one segment, or [B, L, 2], intra and inter, or `separators`'
            check_integers(f'bipe needs integer positions {wanted}', pos, (), (2,))
            intra, inter = (pos, 0 * pos) if pos.ndim == 2 else (pos[..., 0], pos[..., 1])
            low, _ = known_range(intra, tok.valid) or (0, 0)
            if low < 0:
                raise ValueError(f'bipe: place {low} within a segment; places count from 0')
        return dataclasses.replace(tok, pos=inter).with_feats(bipe=intra[..., None])

    def embed(self, x, tok):
        rows = jnp.minimum(tok.feats['bipe'][..., 0], self.train_len - 1)
        added = lookup_rows(self.vectors[...], rows).astype(x.dtype)
        return x + (added if tok.valid is None else jnp.where(tok.valid[..., None], added, 0))
