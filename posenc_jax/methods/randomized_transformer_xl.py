"""Randomized Transformer-XL: sinusoids of a random magnitude in place of those of the distance."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.products import heads_first
from posenc_jax.methods.random_offsets import RandomOffsets, Range
from posenc_jax.methods.transformer_xl import transformer_xl_frequencies, transformer_xl_table
from posenc_jax.protocol.bounds import CONTEXT, Count, Ge, Le, NonNegative
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.families import check_heads
from posenc_jax.protocol.registry import Card, register

_QUERIES = 64  # number of queries whose codes are in memory at once


def randomized_transformer_xl_terms(
    asks: Float[Array, 'B N T D'], offsets: Num[Array, '#B T S'], frequencies: np.ndarray
) -> Float[Array, 'B N T S']:
    """`a_i . enc(o_ij)` of every pair, which is added to the logits; enc is `transformer_xl_table`.

    The codes of all pairs, T S D numbers, are never held at once.

    Args:
      asks: a_i = `W^T (q_i + v) / sqrt(H)` of every query and head.
      offsets: o_ij, such as those of `random_magnitudes`, negative for earlier keys.
      frequencies: see `transformer_xl_frequencies`; D is twice their number.

    Reference: Ruoss et al., arXiv 2305.16843.

    Example:
      >>> w = transformer_xl_frequencies(2)
      >>> asks, offsets = jnp.array([[[[0.0, 1.0]]]]), jnp.array([[[-3, 0]]])
      >>> randomized_transformer_xl_terms(asks, offsets, w).ravel().round(4).tolist()
      [-0.99, 1.0]
    """

    @jax.checkpoint
    def of_query(row):
        asks, offsets = row  # [B, N, D], [#B, S]
        code = transformer_xl_table(offsets, frequencies)
        if len(code) == 1:  # positions shared by the batch
            return jnp.einsum('bnd,sd->bns', asks, code[0])
        return jnp.einsum('bnd,bsd->bns', asks, code)

    count = _QUERIES if isinstance(asks.shape[2], int) else None  # a length may be symbolic
    terms = jax.lax.map(
        of_query, (jnp.moveaxis(asks, 2, 0), jnp.moveaxis(offsets, 1, 0)), batch_size=count
    )
    return jnp.moveaxis(terms, 0, 2)


@register(
    'randomized_transformer_xl',
    kind='encoding',
    card=Card(
        name='randomized Transformer-XL',
        example='randomized_transformer_xl(max_len=4096, eval_len=2048)',
        use_when=(
            'You train on short lists of symbols with the terms of Transformer-XL and '
            'read longer ones.'
        ),
        share='model',
        relative=True,
        needs_training=True,
    ),
)
class RandomizedTransformerXL(RandomOffsets):
    """Transformer-XL's terms with sorted random magnitudes in place of distances; makes logits.

    `logit_ij = ((q_i + u) . k_j + (q_i + v) . W enc(o_ij)) / sqrt(H)`, `o_ij = a_(j-i)` for later
    keys, `-a_(i-j)` for earlier ones, 0 for i = j; `a_1 < ... < a_(n-1)` distinct, uniform without
    replacement from 1 .. M-1, one draw for each forward pass; enc is sines, then cosines of model
    width D, W is D x N H without bias. `random=False` is the paper's plain relative encoding, o_ij
    = j - i, which is `transformer_xl` up to the sign of the sines.

    The paper draws anew in every layer. For that use a pattern with `draw=0, 1, ...`, see
    `randomized_pe`; it also gives every layer its own parameters. Without such a pattern all layers
    share one set of parameters, since the draw is made once, at the stem. Differs from the paper:
    the width of enc is that of the model, in which N H = D. The official noisy version looks
    offsets up in a table without a negative side, so that JAX clamps them; here all offsets have
    their own vectors. As in `randomized_pe`, evaluation without a key uses the draw of a fixed key,
    and `eval_len` sets the number of positions in advance for decoding.

    Args:
      max_len: M.
      random: False keeps distances as they are.
      both_sides: later keys have a draw of their own.
      eval_len: n in evaluation, whatever the input's length; None takes the row's own.
      draw: parts with different numbers draw apart from each other.
      base: base of the frequencies.
      std: standard deviation of the initial u, v and W.
      heads, head_dim, model_dim: from the model.

    Raises:
      ValueError: an odd model width, a base that is not positive; at call, positions that are
        fractional, have several components or reach max_len (in evaluation, eval_len; if they are
        traced, the number of tokens is checked).

    Reference: Ruoss et al., arXiv 2305.16843.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make(
      ...     'randomized_transformer_xl(max_len=2048)', heads=2, head_dim=8, model_dim=16
      ... )
      >>> part.kernel.shape, part.offsets(part.place(tok := pj.Tokens.of(length=3)), tok).shape
      ((16, 2, 8), (1, 3, 3))
    """

    traits = RandomOffsets.traits | {'reads_unrotated'}

    def __init__(
        self,
        max_len: Range,
        random: bool = True,
        both_sides: bool = False,
        eval_len: Annotated[int, Ge(1), Le('max_len')] | None = None,
        draw: Count = 0,
        base: float = 10000.0,
        std: NonNegative = 0.02,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self._configure(max_len, random, both_sides, eval_len, draw)
        transformer_xl_frequencies(model_dim, base)  # checks both
        self.base = base
        self.u = drawn_normal(rngs, (heads, head_dim), std, ('heads', None))
        self.v = drawn_normal(rngs, (heads, head_dim), std, ('heads', None))
        size = model_dim, heads, head_dim
        self.kernel = drawn_normal(rngs, size, std, ('width', 'heads', None))

    def project(self, q, k, v, tq, tk, x=None):
        check_heads('randomized_transformer_xl', self.u[...], heads_first(q))
        wide = q.astype(jnp.float32)
        scaled = (wide + self.v[...]) * q.shape[-1] ** -0.5
        asks = jnp.einsum('btnh,dnh->btnd', scaled, self.kernel[...])
        tq = tq.with_feats(randomized_transformer_xl_asks=asks)
        return (wide + self.u[...]).astype(q.dtype), k, v, tq, tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        frequencies = transformer_xl_frequencies(self.kernel.shape[0], self.base)
        asks = heads_first(tq.feats['randomized_transformer_xl_asks'])
        return s + randomized_transformer_xl_terms(asks, self.offsets(tq, tk), frequencies), carry
