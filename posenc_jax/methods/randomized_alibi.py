"""Randomized ALiBi: distances are replaced by sorted random magnitudes out of a long range."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from posenc_jax.base.products import over_batch
from posenc_jax.methods.alibi import alibi_slopes
from posenc_jax.methods.random_offsets import RandomOffsets, Range
from posenc_jax.protocol.bounds import CONTEXT, Count, Ge, Le
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.families import check_heads
from posenc_jax.protocol.registry import Card, register

_EARLIER = 0.5  # subtracted from the distance of earlier keys


def randomized_alibi_bias(
    slopes: Float[Array, 'N'], offsets: Num[Array, '#B T S']
) -> Float[Array, '#B N T S']:
    """`m_h (-|o_ij| + 1/2 [o_ij < 0])`, float32; o_ij is negative for earlier keys."""
    nearer = jnp.where(offsets < 0, _EARLIER, 0.0) - jnp.abs(offsets).astype(jnp.float32)
    return slopes.astype(jnp.float32)[:, None, None] * nearer[:, None]


@register(
    'randomized_alibi',
    kind='encoding',
    card=Card(
        name='randomized ALiBi',
        example='randomized_alibi(max_len=4096, eval_len=2048)',
        use_when='You train on short lists of symbols with ALiBi and read longer ones.',
        share='model',
        relative=True,
    ),
)
class RandomizedALiBi(RandomOffsets):
    """ALiBi of sorted random magnitudes in place of the distances; acts on the logits.

    `logit_ij = q_i . k_j / sqrt(H) + b_ij`, `b_ij = m_h (-a_|i-j| + 1/2 [j < i])`, 0 for i = j, not
    divided by sqrt(H); `a_1 < ... < a_(n-1)` distinct, uniform without replacement from 1 .. M-1,
    one draw for each forward pass, or with `both_sides` one for earlier keys and one for later
    ones; slopes m_h of ALiBi. All pairs at the same distance get the same bias, unlike in
    `randomized_pe(...) | alibi()`. The term 1/2 for earlier keys lets an encoder tell left from
    right. It is that of the official code, whereas `alibi(variant='offset')` applies its 1/2 to
    later keys. n is the number of positions of a row; positions must be token numbers, in any
    order. `random=False` is the paper's plain symmetric ALiBi.

    The paper draws anew in every layer. For that use a pattern with `draw=0, 1, ...`, see
    `randomized_pe`. Differs from the paper in the same points as `randomized_pe`: evaluation
    without a key uses the draw of a fixed key, and `eval_len` sets the number of positions in
    advance for decoding.

    Args:
      max_len: M.
      random: False keeps distances as they are.
      both_sides: later keys have a draw of their own.
      eval_len: n in evaluation, whatever the input's length; None takes the row's own.
      draw: parts with different numbers draw apart from each other.
      heads: N, from the model.

    Raises:
      ValueError: at call, positions that are fractional, have several components or reach max_len
        (in evaluation, eval_len; if they are traced, the number of tokens is checked).

    Reference: Ruoss et al., arXiv 2305.16843.

    Example:
      >>> import jax, posenc_jax as pj
      >>> encoding = pj.make('randomized_alibi(max_len=4)', heads=8)
      >>> tok = encoding.place(pj.Tokens.of(length=4), key=jax.random.key(0))
      >>> zeros = jnp.zeros((1, 8, 4, 4))
      >>> encoding.logits(zeros, None, None, tok, tok, None, ())[0][0, 0, 1].tolist()
      [-0.25, 0.0, -0.5, -1.0]
    """

    def __init__(
        self,
        max_len: Range,
        random: bool = True,
        both_sides: bool = False,
        eval_len: Annotated[int, Ge(1), Le('max_len')] | None = None,
        draw: Count = 0,
        heads: int = CONTEXT,
    ):
        self._configure(max_len, random, both_sides, eval_len, draw)
        self.slopes = Constant(jnp.asarray(alibi_slopes(heads), jnp.float32), axes=('heads',))

    def logits(self, s, q, k, tq, tk, seen, carry):
        check_heads(self.card.key, self.slopes[...], s)
        bias = randomized_alibi_bias(self.slopes[...], self.offsets(tq, tk))
        return s + over_batch(bias, s.shape[0]), carry
