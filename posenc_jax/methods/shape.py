"""SHAPE: all positions of a text are shifted by one random offset in training."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Num

from posenc_jax.protocol.bounds import CONTEXT, Count, Size
from posenc_jax.protocol.encoding import Encoding, PositionRange
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens


def shape_document_numbers(tok: Tokens) -> Int[Array, '#B L']:
    """The number of the document of every token in its row: 0, 1, ..."""
    if tok.segment is None:
        return jnp.zeros((1, tok.length), jnp.int32)
    return jnp.cumsum(jnp.diff(tok.segment, axis=1, prepend=tok.segment[:, :1]) != 0, axis=1)


def shape_of_documents(drawn: Num[Array, 'B L'], tok: Tokens) -> Num[Array, 'B L']:
    """For every token the draw of its document: the entry of `drawn` with the document's number."""
    number = jnp.broadcast_to(shape_document_numbers(tok), drawn.shape)
    return jnp.take_along_axis(drawn, number, axis=1)


def rows_of(name: str, tok: Tokens) -> int:
    """How many rows of the batch draw apart: 1 if all share their tokens.

    Raises:
      ValueError: positions with several components.
    """
    if tok.pos.ndim != 2:
        raise ValueError(
            f'{name} needs positions with one component [B, L], got {tok.pos.shape}; for a grid '
            'use sincos2d()'
        )
    return row_count(tok)


def row_count(tok: Tokens) -> int:
    """The rows of tokens, 1 if all rows of the batch share them."""
    return max(leaf.shape[0] for leaf in jax.tree.leaves(tok))


@register(
    'shape',
    kind='encoding',
    card=Card(
        name='SHAPE',
        example='shape(offsets=16) | sinusoidal()',
        use_when=(
            'You train with absolute positions and want shifts of a text to do no harm; '
            'to compare with plain sinusoids, since a measured claim is contrary.'
        ),
        share='model',
    ),
)
class Shape(Encoding):
    """Shifts all positions of a text by one random offset in training; precedes an absolute
    encoding.

    `p_i = i + u`, `u drawn from 0 .. K - 1`, one u for each row, or packed document, and pass. So a
    model cannot rely on absolute positions, and differences of positions remain. Positions may be
    fractional. Evaluation without a key adds `eval_offset`.

    Differs from the paper: nothing with the default, an evaluation at offset 0. The released code
    evaluates at K, which is one more than the largest offset of training: `eval_offset=K`. Tokens
    that have one row for the whole batch have one draw.

    Args:
      offsets: K; 1 shifts nothing.
      eval_offset: added to the positions in evaluation.
      train_len: L, from the model. A table in the chain needs L + max(K - 1, eval_offset) rows.

    Raises:
      ValueError: at call, positions with several components.

    Reference: Kiyono, Kobayashi, Suzuki, Inui, arXiv 2109.05644.

    Example:
      >>> import posenc_jax as pj
      >>> encoding, tok = pj.make('shape(eval_offset=7)', train_len=3), pj.Tokens.of(length=3)
      >>> encoding.place(tok).pos.tolist()
      [[7, 8, 9]]
    """

    traits = frozenset({'reads_other_tokens'})

    def __init__(self, offsets: Size = 500, eval_offset: Count = 0, train_len: int = CONTEXT):
        self.offsets, self.eval_offset, self.train_len = offsets, eval_offset, train_len

    @property
    def position_range(self):
        return PositionRange(assigns=self.train_len + max(self.offsets - 1, self.eval_offset))

    def place(self, tok, *, key=None):
        rows = rows_of('shape', tok)
        if key is None:
            return dataclasses.replace(tok, pos=tok.pos + self.eval_offset)
        drawn = jax.random.randint(key, (rows, tok.length), 0, self.offsets)
        return dataclasses.replace(tok, pos=tok.pos + shape_of_documents(drawn, tok))
