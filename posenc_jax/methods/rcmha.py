"""RCMHA: short convolutions of the projections, and tables of the distance per head."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from posenc_jax.base.products import heads_first
from posenc_jax.methods.shaw import take_by_index
from posenc_jax.protocol.bounds import CONTEXT, Size
from posenc_jax.protocol.capabilities import SeveralInputs
from posenc_jax.protocol.checks import exceeds
from posenc_jax.protocol.encoding import drawn_uniform
from posenc_jax.protocol.families import whole_distance
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens

_TAPS = 3


def rcmha_convolution(
    y: Float[Array, 'B rows K H'],
    taps: Float[Array, '3 H'],
    bias: Float[Array, 'H'],
    order: Num[Array, '#B L'],
) -> Float[Array, 'B L K H']:
    """`bias + taps[2] y_t + taps[1] y_(t-1) + taps[0] y_(t-2)`, in the dtype of `y`.

    It is computed in float32.

    Args:
      y: projections of the tokens and of two rows before them.
      taps, bias: per channel, the same for all heads.
      order: index of each token in its document; rows before the document's first count as zero.
    """
    length, total = order.shape[1], bias
    for tap in range(_TAPS):
        rows = y[:, tap : tap + length].astype(jnp.float32) * taps[tap]
        total = total + jnp.where(order[..., None, None] >= _TAPS - 1 - tap, rows, 0.0)
    return total.astype(y.dtype)


def rcmha_bias(
    q: Float[Array, 'B N T H'],
    vectors: Float[Array, 'P N H'],
    scalars: Float[Array, 'P N'],
    distance: Num[Array, '#B T S'],
    seen: Bool[Array, '#B T S'],
) -> Float[Array, 'B N T S']:
    """`q_i . E[d] + c[d]` per head, with d clipped to 0 .. P - 1, not scaled.

    If the distances of a block are consecutive, as for positions that count tokens, only the rows
    of the tables in their range are read.

    Args:
      seen: the visible pairs; the result for the others is finite but has no meaning.

    Example:
      >>> q, c = jnp.ones((1, 1, 1, 1)), jnp.ones((3, 1))
      >>> E = jnp.array([0.0, 10.0, 20.0]).reshape(3, 1, 1)
      >>> rcmha_bias(q, E, c, jnp.array([[[2, 1, 0]]]), jnp.ones((1, 1, 3), bool)).ravel().tolist()
      [21.0, 11.0, 1.0]
    """
    rows = len(vectors)
    row = jnp.clip(distance, 0, rows - 1).astype(jnp.int32)

    def read(low, count):
        # Indices then count up with the keys.
        own = lambda table: jax.lax.dynamic_slice_in_dim(table, low, count)[::-1]
        terms = jnp.einsum('bnth,pnh->bntp', q, own(vectors)) + own(scalars).T[:, None]
        return take_by_index(terms, jnp.clip(low + count - 1 - row, 0, count - 1))

    run = distance.shape[1] + distance.shape[2]
    if not isinstance(run, int) or run >= rows:  # a length may be symbolic
        return read(0, rows)
    low = jnp.clip(jnp.min(jnp.where(seen, row, rows)), 0, rows - run)
    fits = jnp.all(~seen | (row < low + run))
    return jax.lax.cond(fits, lambda: read(low, run), lambda: read(0, rows))


def _longest(tok: Tokens) -> int:
    """The most positions that a document may span.

    It follows from the positions, or from the number of tokens if positions are traced.
    """
    if not isinstance(tok.pos, jax.core.Tracer):
        return int(np.ptp(np.asarray(tok.pos))) + 1
    return tok.length if tok.segment is None else 1


@register(
    'rcmha',
    kind='encoding',
    card=Card(
        name='RCMHA',
        example='rcmha(max_len=64, clip=True)',
        use_when=(
            'You train a model of text in which neighbours matter and can pay for '
            'convolutions; the measured claim is mixed.'
        ),
        causal_only=True,
        relative=True,
        needs_training=True,
    ),
)
class RCMHA(SeveralInputs):
    """Convolves queries, keys and values over three tokens, and adds tables of the distance.

    `logit_ij = ((q_i + u_h) . k_j + q_i . E[d, h] + c[d, h]) / sqrt(H)`, `d = p_i - p_j`, `z_t = b
    + w_2 y_t + w_1 y_(t-1) + w_0 y_(t-2)`, the convolution z of q, k and v per channel of the head
    width, with separate weights for each and the same weights for all heads. It acts on projections
    and logits. It convolves projections, as the released code does (the paper speaks of the input
    embedding), before any part of a chain changes them. Differs from the released code: tables hold
    the P distances of causal attention, not 2P; the convolution reads neither another document nor
    rows before the first token.

    `qkv` also projects the two rows of the layer input before the tokens, so decoding keeps two
    rows of the layer input. The tokens of a document must be contiguous, without padding inside.

    Args:
      max_len: P, rows of the tables. More tokens in one document are an error. A larger distance
        that is known only when the compiled program runs gives NaN.
      clip: True uses the last row for distances beyond the tables instead.
      heads, head_dim: N, H, from the model.

    Raises:
      ValueError: queries with another number of heads than the tables; projections without the
        two rows before the tokens; more tokens than the tables have rows.

    Reference: Sugiharto, Aradea, Mubarok, arXiv 2308.03429.
    """

    lookback = _TAPS - 1
    traits = frozenset({'reads_unrotated'})

    def __init__(
        self,
        max_len: Size = 4096,
        clip: bool = False,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.clip = clip
        bound = _TAPS**-0.5  # the default of a depthwise convolution in the released code
        self.taps = drawn_uniform(rngs, (_TAPS, 3, head_dim), bound, (None, None, None))
        self.bias = drawn_uniform(rngs, (3, head_dim), bound, (None, None))
        self.vectors = nnx.Param(
            jnp.zeros((max_len, heads, head_dim), jnp.float32), axes=(None, 'heads', None)
        )
        self.scalars = nnx.Param(jnp.zeros((max_len, heads), jnp.float32), axes=(None, 'heads'))
        self.u = nnx.Param(jnp.zeros((heads, head_dim), jnp.float32), axes=('heads', None))

    def qkv(self, x, linear, tok):
        if x.shape[1] != tok.length + self.lookback:
            raise ValueError(
                f'rcmha convolves projections with {self.lookback} tokens in front: {tok.length} '
                f'tokens, the layer input of {x.shape[1]}'
            )
        convolved = lambda a, number: rcmha_convolution(
            a, self.taps[:, number], self.bias[number], tok.rank
        )
        q, k, v = map(convolved, linear(x), range(3))
        return q, k, v

    def project(self, q, k, v, tq: Tokens, tk: Tokens, x=None):
        rows, heads = self.vectors.shape[:2]
        if q.shape[2] != heads:
            raise ValueError(f'rcmha has tables for {heads} heads, queries have {q.shape[2]}')
        longest = _longest(tk)
        if not self.clip and exceeds('rcmha', longest, rows):
            wanted = 'use a larger max_len, or clip=True'
            raise ValueError(
                f'rcmha has tables for {rows} distances, got {longest} positions; {wanted}'
            )
        wide = q.astype(jnp.float32)
        tq = tq.with_feats(rcmha=wide * q.shape[-1] ** -0.5)
        return (wide + self.u[...]).astype(q.dtype), k, v, tq, tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        q, scale = heads_first(tq.feats['rcmha']), tq.feats['rcmha'].shape[-1] ** -0.5
        distance, near = whole_distance('rcmha', tq.pos, tk.pos), seen.any(1)
        bias = rcmha_bias(q, self.vectors[...], self.scalars[...] * scale, distance, near)
        if not self.clip:
            bias = jnp.where((near & (distance >= len(self.vectors[...])))[:, None], jnp.nan, bias)
        return s + bias, carry
