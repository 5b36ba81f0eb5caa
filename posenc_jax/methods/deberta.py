"""DeBERTa: products of queries and keys with trained vectors of the bucket of their distance."""

import functools
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from posenc_jax.attention.buckets import bucket_of, take_bucket
from posenc_jax.attention.kernels.program import in_kernel
from posenc_jax.attention.skewed import key_products, query_products
from posenc_jax.base.derivatives import own_gradient
from posenc_jax.base.products import heads_first, scaled_dot_product
from posenc_jax.protocol.bounds import CONTEXT, Ge, Le, Multiple, NonNegative
from posenc_jax.protocol.capabilities import Prepares, SeveralInputs
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.families import all_beyond, whole_distance
from posenc_jax.protocol.registry import Card, register

Terms = Literal['both', 'c2p', 'p2c']
_EPSILON = 1e-7  # of the norm of the table


def deberta_starts(buckets: int, max_distance: int) -> np.ndarray:
    """The smallest distance of each bucket beyond the middle one, int64 [buckets / 2 - 1].

    It uses exact integer arithmetic. With e = buckets / 2 and M = max_distance - 1, bucket e + m
    starts at the smallest `n > e (M / e)^((m-1)/(e-1))`.

    Raises:
      ValueError: buckets that are no even number of at least 4; no distance left for the
        logarithmic half.
    """
    middle, most = buckets // 2, max_distance - 1
    if buckets % 2 or buckets < 4:
        raise ValueError(f'deberta buckets must be even and at least 4, got {buckets}')
    if most <= middle:
        raise ValueError(
            f'deberta max_distance must be at least {middle + 2} with {buckets} buckets, whose '
            f'first {middle} distances have their own, got {max_distance}'
        )
    starts, steps = [], middle - 1
    for m in range(1, middle):
        n = max(1, int(middle * (most / middle) ** ((m - 1) / steps)) - 1)
        while n**steps <= middle ** (steps - m + 1) * most ** (m - 1):
            n += 1
        starts.append(n)
    return np.array(starts, np.int64)


def deberta_bucket(
    distance: Int[Array, '#B T S'], buckets: int = 256, max_distance: int = 512
) -> Int[Array, '#B T S']:
    """The bucket of a distance, with its sign: `r` up to buckets / 2, logarithmic ones beyond.

    Example:
      >>> deberta_bucket(jnp.array([[[0, 16, 17, -32]]]), buckets=32, max_distance=128).tolist()
      [[[0, 16, 17, -22]]]
    """
    size = jnp.abs(distance)
    beyond = bucket_of(size, deberta_starts(buckets, max_distance))
    return jnp.sign(distance) * (jnp.minimum(size, buckets // 2) + beyond)


def deberta_index(
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
    max_distance: int = 512,
    buckets: int | None = None,
) -> Int[Array, '#B T S']:
    """The row of every pair in the table: `clip(b(i - j) + S, 0, 2 S - 1)`.

    Args:
      q_pos, k_pos: positions of queries and keys.
      max_distance: S without buckets, where b changes nothing.
      buckets: S with them; b is `deberta_bucket`.

    Raises:
      ValueError: positions that are not integers.
    """
    return _row(whole_distance('deberta', q_pos, k_pos), max_distance, buckets)


def _row(distance, span: int, buckets: int | None):
    """The row of a distance [#B, T, S]."""
    if buckets is not None:
        distance, span = deberta_bucket(distance, buckets, span), buckets
    return (jnp.clip(distance, -span, span - 1) + span).astype(jnp.int32)


def deberta_terms(
    x: Float[Array, 'B L heads H'], vectors: Float[Array, 'C N H']
) -> Float[Array, 'B L N C']:
    """`x_i . P_c` for every index c, float32: of queries with PK, of keys with PQ.

    Args:
      x: N queries, or keys of K heads, each of which serves N / K query heads.
      vectors: P of each query head.

    Raises:
      ValueError: the heads of the vectors are no multiple of those of x.
    """
    batch, length, heads, width = x.shape
    if vectors.shape[1] % heads:
        raise ValueError(
            f'deberta has vectors of {vectors.shape[1]} heads, no multiple of the {heads} heads '
            'of queries or keys'
        )
    vectors = vectors.reshape(len(vectors), heads, -1, width)
    found = jnp.einsum('blkh,ckgh->blkgc', x.astype(jnp.float32), vectors)
    return found.reshape(batch, length, -1, len(vectors))


def deberta_logits(
    q: Float[Array, 'B N T H'],
    k: Float[Array, 'B K S H'],
    keys: Float[Array, 'C N H'],
    queries: Float[Array, 'C N H'],
    index: Int[Array, '#B T S'],
) -> Float[Array, 'B N T S']:
    """`(q_i . k_j + q_i . PK_c + PQ_c . k_j) / sqrt(3 H)`, float32, c the index of the pair.

    Args:
      q, k: queries and keys, heads first.
      keys, queries: PK and PQ, of each query head.
      index: see `deberta_index`.
    """
    of_q, of_k = (
        heads_first(deberta_terms(jnp.swapaxes(x, 1, 2), vectors) * x.shape[-1] ** -0.5)
        for x, vectors in ((q, keys), (k, queries))
    )
    s = scaled_dot_product(q, k) + take_bucket(of_q, index) + take_bucket(of_k, index, 'key')
    return s * 3**-0.5


def _everywhere(q, k, keys, queries, row):
    """The products of the pairs with PK and PQ, for any rows; None is no PK or no PQ."""
    found = []
    if keys is not None:
        found.append(take_bucket(_of_all(q, keys), row))
    if queries is not None and row.shape[1] == 1 and not in_kernel():
        # A single query, as in decoding, needs one vector for each key.
        vectors = jnp.swapaxes(queries, 0, 1)[:, row[:, 0]].swapaxes(0, 1)  # [#B, N, S, H]
        found.append((_of_heads(k, queries) * vectors).sum(-1)[:, :, None])
    elif queries is not None:
        found.append(take_bucket(_of_all(k, queries), row, 'key'))
    return sum(found)


def _ascending(q, k, keys, queries, row):
    """The same in a tile of consecutive positions, with the rows of its T + S - 1 distances."""
    found = []
    if keys is not None:
        found.append(query_products(q, keys[row]))
    if queries is not None:
        found.append(key_products(_of_heads(k, queries), queries[row]))
    return sum(found)


def _of_all(x, vectors):
    """`deberta_terms`, heads first."""
    return heads_first(deberta_terms(heads_first(x), vectors))


def _of_heads(k, vectors):
    """A key for each query head, float32."""
    return jnp.repeat(k.astype(jnp.float32), vectors.shape[1] // k.shape[1], axis=1)


def _in_tile(run, distance, seen, span, buckets):
    """`run` of `_ascending` if the pairs that are seen have the distances of consecutive queries
    and keys, else of `_everywhere`.
    """
    _, queries, keys = distance.shape
    ahead = distance - (np.arange(queries)[:, None] - np.arange(keys))
    shown, limit = seen.any(1), np.iinfo(np.int32).max
    low = jnp.where(shown, ahead, limit).min()
    high = jnp.where(shown, ahead, -limit).max()
    first = jnp.where(low == high, low, 0) + np.arange(1 - keys, queries)
    rows = functools.partial(_row, span=span, buckets=buckets)
    return jax.lax.cond(
        low >= high,
        lambda: run(lambda *given: _ascending(*given, rows(first[None, None])[0, 0])),
        lambda: run(lambda *given: _everywhere(*given, rows(distance))),
    )


@functools.partial(own_gradient, nondiff_argnums=(6, 7))
def _of_pairs(q, k, keys, queries, distance, seen, span, buckets):
    """The products of the pairs that are seen with PK and PQ."""
    return _in_tile(lambda form: form(q, k, keys, queries), distance, seen, span, buckets)


def _of_pairs_bwd(span, buckets, kept, g):
    *factors, distance, seen = kept
    # JAX would keep what each of the two forms needs, in every tile.
    pull = lambda form: jax.vjp(form, *factors)[1](g)
    return *_in_tile(pull, distance, seen, span, buckets), None, None


_of_pairs.defvjp(lambda *given: (_of_pairs(*given), given[:6]), _of_pairs_bwd)


def normalised(
    rows: Float[Array, '... D'], scale: Float[Array, 'D'], bias: Float[Array, 'D'], epsilon: float
) -> Float[Array, '... D']:
    """The layer norm of the rows of a table."""
    rows = rows - rows.mean(-1, keepdims=True)
    deviation = jax.lax.rsqrt((rows * rows).mean(-1, keepdims=True) + epsilon)
    return rows * deviation * scale + bias


@register(
    'deberta',
    kind='encoding',
    card=Card(
        name='DeBERTa',
        example='deberta(max_distance=6)',
        share='layer',
        relative=True,
        needs_training=True,
    ),
)
class DeBERTa(Prepares):
    """Adds products of each query and of each key with a trained vector of their distance.

    `logit_ij = (q_i . k_j + q_i . PK_c + PQ_c . k_j) / sqrt(3 H)`, `c = clip(b(i - j) + S, 0, 2 S -
    1)`, `PK = P W_k`, `PQ = P W_q + b_q`. The table P has model width. Without `buckets` b(d) is d,
    and S is `max_distance`; then the distances S - 1 and more share the last row, and -S and less
    the first. With them S is their number, and `deberta_bucket` is b. With one term instead of two
    the root is that of 2 H. In a chain the queries and keys are those that the earlier parts leave,
    and all that they have added to the logits is divided by the root of 3 (or 2) too.

    Differs from the paper: it prints the index of the pair (j, i) for PQ; the released code, whose
    weights need it, and this class have one index for both. Every layer has a P of its own, unless
    a model has `share='model'`, which shares W too. P has no dropout. Buckets are computed without
    rounding. The absolute positions in front of the output are no part of this encoding.

    With `share_att_key`, as in the second and the third version, W_q and W_k are the projections of
    the layer, with their biases; `share='model'` then shares P alone, as these versions do. Each
    token gets its 2 S products with the projected rows before attention, and a decode cache holds
    them. The encoding stands before other parts of a chain that change queries or keys.

    Otherwise a tile of consecutive positions multiplies its tokens with the vectors of its own
    distances, see `attention/skewed.py`. Other tiles multiply them with all 2 S vectors. A decode
    cache holds each key a second time, as it was before other parts of a chain changed it.

    Args:
      max_distance: S without buckets; with them, distances from about this one on share a bucket.
      buckets: how many buckets there are in each direction; 256 in the third version.
      terms: 'c2p' leaves PQ out and 'p2c' PK.
      norm: P passes a layer norm first, as in the second version.
      share_att_key: the projections of the layer take the place of W_k, W_q and b_q.
      std: standard deviation of the initial P and W.
      heads, head_dim, model_dim: N, H and the model width, from the model.

    Raises:
      ValueError: buckets that are odd, fewer than 4, or too many for max_distance; at call,
        positions that are not integers, or another number of heads.

    Reference: He, Liu, Gao, Chen, arXiv 2006.03654.
    """

    traits = frozenset({'reads_unrotated'})

    def __init__(
        self,
        max_distance: Annotated[int, Ge(1), Le(1 << 24)] = 512,
        buckets: Annotated[int, Ge(4), Le(1024), Multiple(2)] | None = None,
        terms: Terms = 'both',
        norm: bool = False,
        share_att_key: bool = False,
        std: NonNegative = 0.02,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if buckets is not None:
            deberta_starts(buckets, max_distance)  # checks both
        self.max_distance, self.buckets, self.heads = max_distance, buckets, heads
        self.head_dim, self.terms = head_dim, terms
        self.scale = (2 + (terms == 'both')) ** -0.5
        draw = lambda shape, *axes: drawn_normal(rngs, shape, std, axes)
        own = lambda: draw((model_dim, heads, head_dim), 'width', 'heads', None)
        rows = 2 * (max_distance if buckets is None else buckets)
        self.table = draw((rows, model_dim), None, 'width')
        ones = jnp.ones(model_dim, jnp.float32)
        self.norm_scale = nnx.Param(ones, axes=('width',)) if norm else None
        self.norm_bias = nnx.Param(0 * ones, axes=('width',)) if norm else None
        self.w_k = own() if terms != 'p2c' and not share_att_key else None
        self.w_q = own() if terms != 'c2p' and not share_att_key else None
        # A bias of PK would add the same number to all logits of a query. Where its weights sum to
        # 1, that changes nothing.
        zeros = jnp.zeros((heads, head_dim), jnp.float32)
        self.b_q = None if self.w_q is None else nnx.Param(zeros, axes=('heads', None))

    def rows(self) -> Float[Array, 'C D']:
        """Those of P."""
        rows = self.table[...]
        if self.norm_scale is not None and self.norm_bias is not None:
            rows = normalised(rows, self.norm_scale[...], self.norm_bias[...], _EPSILON)
        return rows

    def vectors(self, kernel: nnx.Param | None) -> Float[Array, 'C N H'] | None:
        """The rows of P, projected, times the factor of all logits and 1 / sqrt(H); or what
        `prepare` has left of a kernel, which is the same.
        """
        if kernel is None:
            return None
        if self.table is None:
            return kernel[...]
        found = jnp.einsum('cd,dnh->cnh', self.rows(), kernel[...])
        if kernel is self.w_q and self.b_q is not None:
            found = found + self.b_q[...]
        return found * (self.scale * found.shape[-1] ** -0.5)

    def project(self, q, k, v, tq, tk, x=None):
        if q.shape[2] != self.heads:
            raise ValueError(
                f'deberta has parameters of {self.heads} heads, the queries have {q.shape[2]}'
            )
        if self.w_k is not None:
            tq = tq.with_feats(deberta=q)
        if self.w_q is not None:
            tk = tk.with_feats(deberta=k)
        return q, k, v, tq, tk

    def prepare(self):
        found = [self.vectors(kernel) for kernel in (self.w_k, self.w_q)]
        self.w_k, self.w_q = (
            None if rows is None else nnx.Param(rows, axes=(None, 'heads', None)) for rows in found
        )
        self.table = self.norm_scale = self.norm_bias = self.b_q = None

    def uniform(self, tq, tk):
        reach = self.max_distance
        if self.buckets is not None:
            starts = deberta_starts(self.buckets, self.max_distance)
            reach = max([self.buckets // 2, *starts.tolist()])
        return all_beyond(tq, tk, reach, reach)

    def logits(self, s, q, k, tq, tk, seen, carry):
        distance = whole_distance('deberta', tq.pos, tk.pos)
        keys, queries = map(self.vectors, (self.w_k, self.w_q))
        q = q if keys is None else heads_first(tq.feats['deberta'])
        k = k if queries is None else heads_first(tk.feats['deberta'])
        options = self.max_distance, self.buckets
        if in_kernel() or not isinstance(tq.length, int) or tq.length == 1:
            added = _everywhere(q, k, keys, queries, _row(distance, *options))
        else:
            # Padding is at no place that would tell a tile of consecutive positions.
            seen = seen if tq.valid is None else seen & tq.valid[:, None, :, None]
            added = _of_pairs(q, k, keys, queries, distance, seen, *options)
        return s * self.scale + added, carry


class SharingDeBERTa(DeBERTa, SeveralInputs, where=lambda given: given['share_att_key']):
    """DeBERTa whose table is projected as the tokens are."""

    def qkv(self, x, linear, tok):
        q, k, v = linear(x)
        queries, keys, _ = linear(self.rows()[None].astype(x.dtype))
        group = q.shape[2] // k.shape[2]
        # Behind the features of a head are its products, for `project` to take off.
        if self.terms != 'p2c':
            q = _with_products(q, jnp.repeat(keys[0], group, axis=1))
        if self.terms != 'c2p':
            k = _with_products(k, queries[0])
        return q, k, v

    def project(self, q, k, v, tq, tk, x=None):
        (q, of_q), (k, of_k) = (jnp.split(a, [self.head_dim], axis=-1) for a in (q, k))
        if not of_q.size + of_k.size:
            raise ValueError('deberta(share_att_key=True) takes what its own `qkv` has projected')
        heads = lambda a: a.reshape(*a.shape[:2], -1, len(self.table[...]))
        tq, tk = (
            tok.with_feats(deberta=heads(found)) if found.size else tok
            for tok, found in ((tq, of_q), (tk, of_k))
        )
        return q.astype(v.dtype), k.astype(v.dtype), v, tq, tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        distance = whole_distance('deberta', tq.pos, tk.pos)
        row = _row(distance, self.max_distance, self.buckets)
        if self.terms != 'p2c':
            s = s + take_bucket(heads_first(tq.feats['deberta']), row)
        if self.terms != 'c2p':
            s = s + take_bucket(heads_first(tk.feats['deberta']), row, 'key')
        return s * self.scale, carry


def _with_products(x, vectors):
    """Queries or keys, and behind them their products, over sqrt(H), for their query heads."""
    found = (deberta_terms(x, vectors) * x.shape[-1] ** -0.5).reshape(*x.shape[:3], -1)
    return jnp.concatenate([x.astype(jnp.float32), found], axis=-1)
