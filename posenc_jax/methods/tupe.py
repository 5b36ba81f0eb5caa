"""TUPE: a bias of two absolute positions, whose projections are untied from those of the tokens."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from posenc_jax.base.products import heads_first, over_batch
from posenc_jax.methods.deberta import normalised
from posenc_jax.methods.t5_rpe import look_up, t5_rpe_bucket, t5_rpe_thresholds
from posenc_jax.protocol.bounds import CONTEXT, NonNegative, Size
from posenc_jax.protocol.encoding import Encoding, PositionRange, drawn_normal
from posenc_jax.protocol.families import check_heads
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import check_range, lookup_rows

_EPSILON = 1e-5  # of the norm of the table


def tupe_bias(
    of_q: Float[Array, '#B N T H'],
    of_k: Float[Array, '#B N S H'],
    q_rank: Int[Array, '#B T'],
    k_rank: Int[Array, '#B S'],
    from_first: Float[Array, '#B N #T'] | None = None,
    to_first: Float[Array, '#B N #T'] | None = None,
) -> Float[Array, '#B N T S']:
    """`a_i . b_j / sqrt(2 H)`, float32, with the resets of the first token, whose rank is 0.

    Args:
      of_q, of_k: a and b, heads first.
      q_rank, k_rank: numbers of queries and keys in their document, 0, 1, ...
      from_first, to_first: replace the bias of pairs whose query is the first token, and of those
        whose key it is; the pair of both has `from_first`. None resets nothing.

    Example:
      >>> a, rank = jnp.ones((1, 1, 2, 2)), jnp.array([[0, 1]])
      >>> tupe_bias(a, a, rank, rank, 5 * a[..., :1, 0], 7 * a[..., :1, 0])[0, 0].tolist()
      [[5.0, 5.0], [7.0, 1.0]]
    """
    rows = max(len(of_q), len(of_k))
    of_q, of_k = (jnp.broadcast_to(a, (rows, *a.shape[1:])) for a in (of_q, of_k))
    bias = jnp.einsum('bnth,bnsh->bnts', of_q, of_k) * (2 * of_q.shape[-1]) ** -0.5
    if from_first is None or to_first is None:
        return bias
    bias = jnp.where((k_rank == 0)[:, None, None], to_first[..., None], bias)
    return jnp.where((q_rank == 0)[:, None, :, None], from_first[..., None], bias)


def tupe_bucket(
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
    q_rank: Int[Array, '#B T'] | None = None,
    k_rank: Int[Array, '#B S'] | None = None,
    *,
    buckets: int = 32,
    max_distance: int = 128,
) -> Int[Array, '#B T S']:
    """The bidirectional T5 bucket of every pair. With ranks it is `buckets` where the key is the
    first token, of rank 0, and where the query is, `buckets / 2`, which no other pair has.
    """
    found = t5_rpe_bucket(
        q_pos, k_pos, buckets=buckets, max_distance=max_distance, bidirectional=True
    )
    if q_rank is None or k_rank is None:
        return found
    found = jnp.where((k_rank == 0)[:, None], buckets, found)
    return jnp.where((q_rank == 0)[:, :, None], buckets // 2, found)


@register(
    'tupe',
    kind='encoding',
    card=Card(name='TUPE', example='tupe(max_len=64)', share='model', needs_training=True),
)
class TUPE(Encoding):
    """Adds products of projected positions to the logits; positions do not enter token vectors.

    `logit_ij = q_i . k_j / sqrt(2 H) + a_i . b_j / sqrt(2 H)`, `a_i = W_q U_(i+1) + c_q`, `b_j =
    W_k U_(j+1) + c_k`, U the layer norm of a trained table of model width. That is TUPE-A.
    `relative` adds T5's bias of the distance to it: TUPE-R. With `reset` the first token, a [CLS]
    token, is untied from the positions: where it is the key the bias is `a_0 . b_0 / sqrt(2 H)`,
    and where it is the query it is the same product of row 0 of U, which no position has. The
    first token is that of its document, wherever `shape` places it. In a chain all that the earlier
    parts have added to the logits is divided by sqrt(2) too.

    Differs from the paper: without `reset` there is no c_k, which would add the same number to all
    logits of a query, and so nothing where the weights of a query sum to 1. All layers share one
    bias, as in the paper, in a model whose parts share their parameters as the Card says.

    Args:
      max_len: positions in the table; more are an error.
      relative: also adds a trained bias per head and bucket of distance.
      reset: unties the first token.
      buckets: of `relative`, of both directions together; even.
      max_distance: of `relative`; distances from about here on share the last bucket.
      std: standard deviation of the initial table, projections and relative biases.
      heads, head_dim, model_dim: N, H and the model width, from the model.

    Raises:
      ValueError: buckets or max_distance without `relative`, or too few, too many or an odd number
        of buckets; at call, positions that are fractional, have several components or are beyond
        the table. If positions are traced, the number of tokens is checked instead, and a position
        beyond the table gives NaN.

    Reference: Ke, He, Liu, arXiv 2006.15595.
    """

    def __init__(
        self,
        max_len: Size = 512,
        relative: bool = False,
        reset: bool = True,
        buckets: int = 32,
        max_distance: int = 128,
        std: NonNegative = 0.02,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if not relative and (buckets, max_distance) != (32, 128):
            raise ValueError(
                f'tupe buckets={buckets}, max_distance={max_distance} are arguments of the '
                'relative bias; add relative=True'
            )
        if buckets % 2:
            raise ValueError(
                f'tupe needs an even number of buckets, got {buckets}; the nearest is {buckets + 1}'
            )
        t5_rpe_thresholds(buckets // 2, max_distance)  # checks both
        self.max_len, self.reset = max_len, reset
        self.buckets, self.max_distance = buckets, max_distance
        draw = lambda shape, *axes: drawn_normal(rngs, shape, std, axes)
        zeros = lambda: jnp.zeros((heads, head_dim), jnp.float32)
        kernel = lambda: draw((model_dim, heads, head_dim), 'width', 'heads', None)
        self.table = draw((max_len + 1, model_dim), None, 'width')
        self.norm_scale = nnx.Param(jnp.ones(model_dim, jnp.float32), axes=('width',))
        self.norm_bias = nnx.Param(jnp.zeros(model_dim, jnp.float32), axes=('width',))
        self.w_q, self.w_k = kernel(), kernel()
        self.c_q = nnx.Param(zeros(), axes=('heads', None))
        self.c_k = nnx.Param(zeros(), axes=('heads', None)) if reset else None
        self.relative = draw((buckets + reset, heads), None, 'heads') if relative else None

    @property
    def position_range(self):
        return PositionRange(accepts=self.max_len)

    def place(self, tok, *, key=None):
        if tok.pos.ndim != 2:
            raise ValueError(f'tupe needs one position per token [B, L], got {tok.pos.shape}')
        check_range('tupe', tok, self.max_len, 'shorter inputs')
        return tok

    def rows(self, of_queries: bool, index: Int[Array, '#B L']) -> Float[Array, '#B L N H']:
        """The projection of rows of U: a for queries, b for keys."""
        kernel, bias = (self.w_q, self.c_q) if of_queries else (self.w_k, self.c_k)
        table = normalised(self.table[...], self.norm_scale[...], self.norm_bias[...], _EPSILON)
        # A negative row is one that does not exist.
        found = jnp.einsum('bld,dnh->blnh', lookup_rows(table, index), kernel[...])
        return found if bias is None else found + bias[...]

    def project(self, q, k, v, tq, tk, x=None):
        # Row 0 is that of no position.
        row = lambda tok: jnp.where(tok.pos < 0, -1, tok.pos + 1)
        of_q, of_k = self.rows(True, row(tq)), self.rows(False, row(tk))
        firsts = ()
        if self.reset:
            ends = jnp.array([[0, 1]])
            same = (self.rows(True, ends) * self.rows(False, ends)).sum(-1)
            same = same * (2 * q.shape[-1]) ** -0.5
            firsts = tuple(jnp.broadcast_to(one, (1, tq.length, len(one))) for one in same[0])
        return q, k, v, tq.with_feats(tupe=(of_q, *firsts)), tk.with_feats(tupe=of_k)

    def logits(self, s, q, k, tq, tk, seen, carry):
        of_q, *firsts = map(heads_first, tq.feats['tupe'])
        check_heads('tupe', of_q[0], s)
        bias = tupe_bias(of_q, heads_first(tk.feats['tupe']), tq.rank, tk.rank, *firsts)
        if self.relative is not None:
            ranks = (tq.rank, tk.rank) if self.reset else ()
            bucket = tupe_bucket(
                tq.pos, tk.pos, *ranks, buckets=self.buckets, max_distance=self.max_distance
            )
            bias = bias + look_up(self.relative[...], bucket)
        return s * 2**-0.5 + over_batch(bias, s.shape[0]), carry
