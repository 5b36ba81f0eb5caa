"""Randomized positional encodings: sorted random positions from a range longer than the text."""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from posenc_jax.protocol.bounds import Count, Ge, Le, Size
from posenc_jax.protocol.encoding import Encoding, PositionRange
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import NOWHERE, check_range, known_range
from posenc_jax.protocol.tokens import Tokens

Evaluation = Literal['sampled', 'spaced', 'first']
LARGEST_SPACED = 46340  # the largest integer whose square fits in int32


def randomized_pe_ids(
    key: Array, count: Int[Array, 'B'], max_len: int, *, per_row: bool = False
) -> Int[Array, 'B M']:
    """For each row `count` distinct ids drawn uniformly from 0 .. max_len-1, in ascending order.

    The remaining entries of a row are max_len. Rows share one draw: rows of equal count have equal
    ids, and the ids of a smaller count are a subset of those of a larger count.

    Args:
      key: random key.
      count: how many ids each row needs, at most max_len.
      max_len: M, size of the range.
      per_row: an independent draw for every row.

    Raises:
      ValueError: known counts outside 0 .. max_len.

    Example:
      >>> randomized_pe_ids(jax.random.key(0), jnp.array([3]), 3).tolist()
      [[0, 1, 2]]
    """
    _check_count(count, max_len)
    ids = jnp.arange(max_len, dtype=jnp.int32)
    if per_row:
        shuffled = jax.vmap(lambda k: jax.random.permutation(k, ids))
        order = shuffled(jax.random.split(key, count.shape[0]))
    else:
        order = jax.random.permutation(key, ids)[None]
    return jnp.sort(jnp.where(order < count[:, None], ids, max_len), axis=-1)


def randomized_pe_spaced_ids(
    pos: Int[Array, 'B L'], count: Int[Array, 'B'], max_len: int
) -> Int[Array, 'B L']:
    """The expected ids of `randomized_pe_ids` rounded down: `floor((p+1) (M+1) / (n+1)) - 1`.

    They are distinct and in range. A position outside 0 .. n-1 becomes `NOWHERE`; if a traced n
    exceeds M, all positions do.

    Raises:
      ValueError: known counts outside 0 .. max_len.
    """
    _check_count(count, max_len)
    parts = count[:, None] + 1
    whole, rest = (max_len + 1) // parts, (max_len + 1) % parts
    expected = (pos + 1) * whole + (pos + 1) * rest // parts - 1
    return jnp.where(_there(pos, count, max_len), expected, NOWHERE)


def _there(pos, count, max_len):
    """Which positions are among the first `count`, where so many can be drawn."""
    return (pos >= 0) & (pos < count[:, None]) & (count[:, None] <= max_len)


def _check_count(count, max_len):
    low, high = known_range(count, None) or (0, 0)
    if low < 0 or high > max_len:
        raise ValueError(
            f'randomized_pe: {low if low < 0 else high} distinct ids cannot be drawn from {max_len}'
        )


@register(
    'randomized_pe',
    kind='encoding',
    card=Card(
        name='randomized PE',
        example='randomized_pe(max_len=128, eval_len=96) | rope()',
        share='model',
    ),
)
class RandomizedPE(Encoding):
    """Gives n tokens n sorted random positions out of a long range; precedes another encoding.

    `p_0 < p_1 < ... < p_(n-1), drawn from 0 .. M-1`, uniform without replacement; one draw per
    forward pass. n counts the positions of a row (padding and shorter documents add none), and ids
    are looked up by position, so rows may be padded or packed. The paper's ALiBi and Transformer-XL
    variants, which randomise distances instead of positions, are `randomized_alibi` and
    `randomized_transformer_xl`.

    The paper's variants inside attention (RoPE) draw anew in every layer. For that give each layer
    its own part by a pattern:
    `config.pattern = [f'randomized_pe(max_len=2048, draw={n}) | rope()' for n in range(layers)]`.
    A single part has one draw for all layers, as the paper's variants at the input of the model.

    Differs from the paper: the paper also draws at test time. Here evaluation without a key is
    deterministic, by one of three rules. 'sampled' uses the draw of a fixed key; 'spaced' the
    expected ids, rounded down; 'first' the positions 0 .. n-1, without randomisation.

    Args:
      max_len: M. With M = n every rule gives 0 .. n-1.
      per_row: an independent draw for every row of the batch in training.
      evaluation: 'sampled', 'spaced' or 'first'.
      eval_len: n in evaluation, whatever the input's length; the ids of a prefix then do not depend
        on later tokens. None takes the row's own n, as in the paper.
      draw: parts with different numbers draw apart from each other, also where 'sampled' evaluates.

    Raises:
      ValueError: a max_len beyond 46340 with 'spaced'; at call, positions that are fractional,
        have several components or reach max_len (in evaluation, eval_len; where they are traced,
        the number of tokens counts, and such a position becomes `NOWHERE`), `per_row` for tokens
        that have one row for the whole batch.

    Reference: Ruoss et al., arXiv 2305.16843.
    """

    traits = frozenset({'reads_other_tokens'})

    def __init__(
        self,
        max_len: Size,
        per_row: bool = False,
        evaluation: Evaluation = 'sampled',
        eval_len: Annotated[int, Ge(1), Le('max_len')] | None = None,
        draw: Count = 0,
    ):
        if evaluation == 'spaced' and max_len > LARGEST_SPACED:
            raise ValueError(
                f"randomized_pe evaluation='spaced' needs max_len <= {LARGEST_SPACED}, got "
                f"{max_len}; use 'sampled'"
            )
        self.max_len, self.per_row = max_len, per_row
        self.evaluation, self.eval_len = evaluation, eval_len
        self.draw = draw

    @property
    def position_range(self):
        return PositionRange(assigns=self.max_len)

    def place(self, tok, *, key=None):
        fixed = self.eval_len if key is None else None
        count, pos = drawn_count('randomized_pe', tok, self.max_len, fixed), tok.pos
        if key is None and self.evaluation == 'first':
            return tok
        if key is None and self.evaluation == 'spaced':
            return dataclasses.replace(tok, pos=randomized_pe_spaced_ids(pos, count, self.max_len))
        if key is not None and self.per_row and len(count) == 1:
            raise ValueError(
                'randomized_pe(per_row=True) needs tokens with a row per sequence, got one for '
                'the batch'
            )
        own = key is not None and self.per_row
        key = evaluation_key(self.draw) if key is None else key
        ids = randomized_pe_ids(key, count, self.max_len, per_row=own)
        rows = max(len(ids), len(pos))  # padding may differ between rows that share their positions
        ids, pos = (jnp.broadcast_to(array, (rows, array.shape[1])) for array in (ids, pos))
        there = _there(pos, count, self.max_len)  # where positions are known it has been checked
        own_ids = jnp.take_along_axis(ids, pos, axis=1)
        return dataclasses.replace(tok, pos=jnp.where(there, own_ids, NOWHERE))


def evaluation_key(draw: int) -> Array:
    """The fixed key of evaluation, one for each number of a draw."""
    return jax.random.fold_in(jax.random.key(0), draw) if draw else jax.random.key(0)


def drawn_count(user: str, tok: Tokens, max_len: int, fixed: int | None) -> Int[Array, '#B']:
    """How many positions a row draws: `fixed`, or one more than its largest position.

    Raises:
      ValueError: positions with several components, or not below that number or `max_len`.
    """
    if tok.pos.ndim != 2:
        raise ValueError(f'{user} needs positions with one component [B, L], got {tok.pos.shape}')
    check_range(user, tok, max_len if fixed is None else fixed, 'shorter inputs')
    if fixed is not None:
        return jnp.full(1, fixed, jnp.int32)
    pos = tok.pos if tok.valid is None else jnp.where(tok.valid, tok.pos, 0)
    return pos.max(axis=1) + 1
