"""iRPE: image relative position encoding, terms of buckets of row and column offsets."""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.attention.buckets import sum_by_bucket, take_bucket
from posenc_jax.base.products import heads_first, over_batch, weighted_sum
from posenc_jax.methods.irpe_index import Method, irpe_buckets, irpe_ids
from posenc_jax.protocol.bounds import CONTEXT
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.families import check_heads
from posenc_jax.protocol.registry import Card, register

Mode = Literal['contextual', 'bias']
On = Literal['q', 'k', 'v', 'qk', 'qv', 'kv', 'qkv']


def irpe_terms(
    x: Float[Array, 'B L heads H'], table: Float[Array, 'N_or_1 H C']
) -> Float[Array, 'B L heads_or_N C']:
    """`T[:, c] . x_i / sqrt(H)` for every bucket c, float32: of queries with T_k, of keys with T_q.

    Args:
      x: queries or keys.
      table: one for all heads, or one for each query head; then keys give terms of all query heads.
    """
    batch, length, heads, width = x.shape
    tables = table.reshape(-1, max(table.shape[0] // heads, 1), *table.shape[1:])
    x = x.astype(jnp.float32) * width**-0.5
    if table.shape[0] == 1:
        return jnp.einsum('blnh,hc->blnc', x, table[0])
    return jnp.einsum('blkh,kghc->blkgc', x, tables).reshape(batch, length, -1, table.shape[2])


def irpe_bias(
    table: Float[Array, 'N_or_1 C'], ids: Int[Array, '#B T S']
) -> Float[Array, '#B N_or_1 T S']:
    """`t[h, b(i, j)]`, float32.

    Example:
      >>> irpe_bias(jnp.array([[5.0, 7.0]]), jnp.array([[[1, 0, 1]]])).tolist()
      [[[[7.0, 5.0, 7.0]]]]
    """
    return take_bucket(table[None, :, None], ids, 'all')


def irpe_values(
    w: Float[Array, 'B N T S'], table: Float[Array, 'N_or_1 C H'], ids: Int[Array, '#B T S']
) -> Float[Array, 'B N T H']:
    """`sum_j p_ij T_v[b(i, j)]`, float32: the weights are summed for each bucket first."""
    # One copy of the table per row and head, as in `shaw_values`: then the gradient is a product
    # per row and head, which is many times as fast as one product over all.
    copies = jnp.broadcast_to(table, (*w.shape[:2], *table.shape[1:]))
    return jnp.einsum('bntc,bnch->bnth', sum_by_bucket(w, ids, table.shape[1]), copies)


@register(
    'irpe',
    kind='encoding',
    card=Card(name='iRPE', example='irpe(on="qkv")', relative=True, needs_training=True),
)
class IRPE(Encoding):
    """Adds trained terms of the bucket of a pair, which depends on its offset in rows and columns.

    `logit_ij = (q_i . k_j + T_k[:, b(i,j)] . q_i + T_q[:, b(j,i)] . k_j) / sqrt(H)`, `out_i = sum_j
    p_ij (v_j + T_v[b(i,j)])`. That is 'contextual'; 'bias' has `logit_ij = q_i . k_j / sqrt(H) +
    t[h, b(i,j)]`. It acts on logits and, with T_v, on the output. `irpe_ids` says which bucket a
    pair is in: near offsets have their own, farther ones share some, and from about `8 ratio` on
    all are in the last one, so every size of grid is defined. Positions are (row, column); a pair
    with a token that is not on the grid, such as a class token at (-1, -1), is in one more bucket.
    With 'cross' rows and columns have tables of their own, whose terms are added.

    The terms of a query or key are computed once for all buckets (a decode cache holds those of the
    keys), and read by the ids of each tile; no array of all pairs is made. In a chain the queries
    and keys are those that the earlier parts leave.

    Differs from the paper: nothing in the buckets 'product', 'cross', 'euc' and 'quant_paper';
    'quant' is that of the released code. The tables have the additional bucket also where no token
    is in it. Offsets are indexed in float64, the code uses float32.

    Args:
      mode: 'contextual' or 'bias'.
      method: 'product', 'cross', 'euc', 'quant' or 'quant_paper', see `irpe_ids`.
      on: which of the tables T_q, T_k, T_v there are, for 'contextual': 'k', 'qk', 'qkv', ...
      shared: one table for all heads instead of one for each head.
      ratio: the largest offset with a bucket of its own; see `irpe_ids`.
      heads, head_dim: N and H, from the model.

    Raises:
      ValueError: `on` given for 'bias', a ratio outside 0.5 .. 64; at call, positions that are
        not integers [B, L, 2], or another number of heads.

    Reference: Wu, Peng, Chen, Fu, Chao, arXiv 2107.14222.
    """

    components = 2
    traits = frozenset({'reads_unrotated'})

    def __init__(
        self,
        mode: Mode = 'contextual',
        method: Method = 'product',
        on: On = 'k',
        shared: bool = True,
        ratio: float = 1.9,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
    ):
        self.buckets = irpe_buckets(method, ratio) + 1
        if mode == 'bias' and on != 'k':
            raise ValueError(
                f"irpe on={on!r} is for mode='contextual'; 'bias' has one table, of the logits"
            )
        self.mode: Mode = mode
        self.method: Method = method
        self.on: On = on
        self.ratio = ratio
        # The first axis counts the tables: rows and columns for 'cross'.
        tables, own, role = 1 + (method == 'cross'), *((1, None) if shared else (heads, 'heads'))
        zeros = lambda *shape: nnx.Param(
            jnp.zeros((tables, own, *shape), jnp.float32), axes=(None, role, *[None] * len(shape))
        )
        wanted = lambda which: mode == 'contextual' and which in on
        self.bias = zeros(self.buckets) if mode == 'bias' else None
        self.queries = zeros(head_dim, self.buckets) if wanted('q') else None
        self.keys = zeros(head_dim, self.buckets) if wanted('k') else None
        self.values = zeros(self.buckets, head_dim) if wanted('v') else None

    def ids(self, tq, tk) -> tuple[Int[Array, '#B T S'], ...]:
        return irpe_ids(tq.pos, tk.pos, self.method, self.ratio)

    def project(self, q, k, v, tq, tk, x=None):
        of = lambda x, param: tuple(irpe_terms(x, table) for table in param[...])
        if self.keys is not None:
            tq = tq.with_feats(irpe=of(q, self.keys))
        if self.queries is not None:
            tk = tk.with_feats(irpe=of(k, self.queries))
        return q, k, v, tq, tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        for param in (self.bias, self.keys, self.queries):
            if param is not None and param.shape[1] > 1:
                check_heads('irpe', param[0], s)
        if self.bias is not None:
            for table, ids in zip(self.bias[...], self.ids(tq, tk)):
                # Heads that share a table read copies of it: their gradients are then summed per
                # bucket, not per pair, which takes a quarter of the time.
                copies = jnp.broadcast_to(table, (s.shape[1], table.shape[1]))
                s = s + over_batch(irpe_bias(copies, ids), s.shape[0])
        if self.keys is not None:
            for terms, ids in zip(tq.feats['irpe'], self.ids(tq, tk)):
                s = s + take_bucket(heads_first(terms), ids)
        if self.queries is not None:
            for terms, ids in zip(tk.feats['irpe'], self.ids(tk, tq)):
                added = take_bucket(heads_first(terms), ids.swapaxes(1, 2), 'key')
                s = s + jnp.repeat(added, s.shape[1] // added.shape[1], axis=1)
        return s, carry

    def collect(self, w, v, tq, tk):
        out = weighted_sum(w, v)
        for table, ids in zip(self.values[...], self.ids(tq, tk)):
            out = out + irpe_values(w, table, ids)
        return out


class IRPEWithoutValues(IRPE, where=lambda given: 'v' not in given['on']):
    """iRPE without T_v."""

    collect = Encoding.collect


class BiasIRPE(IRPE, where=lambda given: given['mode'] == 'bias'):
    """iRPE with a bias of the bucket, which reads no projections."""

    project = Encoding.project


class IRPEOfValues(IRPE, where=lambda given: given['on'] == 'v'):
    """iRPE with T_v alone."""

    project, logits = Encoding.project, Encoding.logits
