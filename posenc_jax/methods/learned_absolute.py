"""Learned absolute positions: one trained vector per position."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from posenc_jax.protocol.bounds import CONTEXT, Count, NonNegative, Size
from posenc_jax.protocol.encoding import PositionRange
from posenc_jax.protocol.families import Embedding
from posenc_jax.protocol.length import current_length
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import check_integers, check_range, lookup_rows
from posenc_jax.protocol.tokens import Tokens

Ids = Literal['plain', 'fairseq']
Overflow = Literal['error', 'clamp', 'mod', 'interpolate']


def learned_absolute_ids(
    pos: Int[Array, '#B L'], valid: Bool[Array, '#B L'] | None, padding_idx: int = 1
) -> Int[Array, '#B L']:
    """Rows of fairseq's table: `padding_idx + 1 + pos` for real tokens, `padding_idx` for padding.

    Positions of real tokens count from 0.
    """
    ids = pos + padding_idx + 1
    return ids if valid is None else jnp.where(valid, ids, padding_idx)


def learned_absolute_positions(
    pos: Num[Array, '...'], max_len: int, length: Num[Array, '...'] | int
) -> Float[Array, '...']:
    """Fractional rows, of `max_len`, for `length` positions when centres of cells are aligned.

    Positions are unchanged if `length` does not exceed `max_len`.
    """
    pos = pos.astype(jnp.float32)
    stretched = jnp.clip((pos + 0.5) * (max_len / jnp.maximum(length, 1)) - 0.5, 0.0, max_len - 1.0)
    return jnp.where(length <= max_len, pos, stretched)


@register(
    'learned_absolute',
    kind='encoding',
    card=Card(
        name='learned absolute positions',
        example='learned_absolute(max_len=128)',
        use_when=(
            'All your texts fit the trained length, or you load a model such as GPT-2 or '
            'BERT that has it.'
        ),
        share='model',
        needs_training=True,
    ),
)
class LearnedAbsolute(Embedding):
    """Adds a trained vector per position to the token vectors.

    `x_t + P[p_t]`. Differs from the papers: nothing for `ids='plain'` (p_t = t, as GPT-2 and BERT)
    and 'fairseq' (rows start at `padding_idx + 1`, row `padding_idx` is zero and stays so). A
    longer sequence than the table is an error unless `overflow` says otherwise: 'clamp' reuses the
    last vector, 'mod' starts over, 'interpolate' stretches the table linearly over the sequence, or
    the packed document (cell centres aligned); in decoding over the whole capacity.

    Args:
      max_len: positions in the table.
      ids: 'plain' or 'fairseq'.
      overflow: 'error', 'clamp', 'mod' or 'interpolate'.
      std: standard deviation of the initial vectors; None takes 0.02 for 'plain' and D^-0.5 for
        'fairseq'.
      padding_idx: of 'fairseq' only.

    Raises:
      ValueError: at call, positions that are fractional or have several components and, under
        'error', positions beyond the table. Where positions are traced the number of tokens is
        checked instead, and a position that is still beyond the table gives NaN.

    Reference: Gehring et al., arXiv 1705.03122; Devlin et al., arXiv 1810.04805.

    Example:
      >>> import jax.numpy as jnp, posenc_jax as pj
      >>> encoding = pj.make('learned_absolute(max_len=16)', model_dim=4)
      >>> encoding.embed(jnp.zeros((1, 3, 4)), pj.Tokens.of(length=3)).shape
      (1, 3, 4)
    """

    def __init__(
        self,
        max_len: Size,
        ids: Ids = 'plain',
        overflow: Overflow = 'error',
        std: NonNegative | None = None,
        padding_idx: Count = 1,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.max_len, self.ids = max_len, ids
        self.overflow, self.padding_idx = overflow, padding_idx
        first = padding_idx + 1 if ids == 'fairseq' else 0
        std = std if std is not None else (model_dim**-0.5 if ids == 'fairseq' else 0.02)
        rows = std * jax.random.normal(rngs.params(), (max_len + first, model_dim), jnp.float32)
        if first:
            rows = rows.at[padding_idx].set(0.0)
        self.vectors = nnx.Param(rows, axes=('positions', 'width'))

    @property
    def traits(self):
        return frozenset({'reads_other_tokens'} if self.overflow == 'interpolate' else ())

    @property
    def position_range(self):
        return PositionRange(accepts=self.max_len if self.overflow == 'error' else None)

    def rows(self, tok: Tokens) -> Num[Array, '#B L']:
        """The row of the table each token gets, fractional under 'interpolate'."""
        pos = tok.pos
        check_integers('learned_absolute needs integer positions [B, L]', pos, ())
        if self.overflow == 'error':
            policies = "overflow='clamp', 'mod' or 'interpolate'"
            check_range('learned_absolute', tok, self.max_len, policies)
        elif self.overflow == 'clamp':
            pos = jnp.minimum(pos, self.max_len - 1)
        elif self.overflow == 'mod':
            pos = pos % self.max_len
        else:
            pos = learned_absolute_positions(pos, self.max_len, current_length(tok, tok)[0])
        return (
            learned_absolute_ids(pos, tok.valid, self.padding_idx) if self.ids == 'fairseq' else pos
        )

    def place(self, tok, *, key=None):
        rows = self.rows(tok)  # checks the whole length, since decoding embeds one token at a time
        interpolates = self.overflow == 'interpolate'
        return tok.with_feats(learned_absolute=rows[..., None]) if interpolates else tok

    def table(self, tok, width):
        placed = tok.feats.get('learned_absolute')
        return lookup_rows(self.vectors[...], self.rows(tok) if placed is None else placed[..., 0])
