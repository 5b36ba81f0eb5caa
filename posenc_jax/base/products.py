"""The products of attention, in float32, and their gradients; query heads share key heads."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from posenc_jax.base.derivatives import own_gradient


def scaled_dot_product(
    q: Float[Array, 'B N T H'], k: Float[Array, 'B K S H']
) -> Float[Array, 'B N T S']:
    """`q k^T / sqrt(H)` in float32; each of the K key heads serves N // K consecutive query
    heads.
    """
    b, n, t, h = q.shape
    kv, s = k.shape[1], k.shape[2]
    out: Any = _rows_by_rows(q.reshape(b, kv, n // kv * t, h), k, h**-0.5)
    return out.reshape(b, n, t, s)


def weighted_sum(w: Float[Array, 'B N T S'], v: Float[Array, 'B K S H']) -> Float[Array, 'B N T H']:
    """`w v` in float32, key/value heads shared as in `scaled_dot_product`."""
    b, n, t, s = w.shape
    kv, h = v.shape[1], v.shape[3]
    out: Any = _rows_by_columns(w.reshape(b, kv, n // kv * t, s).astype(v.dtype), v)
    return out.reshape(b, n, t, h)


# The two products have gradients of their own because the transposed one contracts the rows of a
# large tile: written as [H, T] x [T, S] it is twice as fast on CPU as the [S, T] x [T, H] that
# automatic differentiation asks for.
def _dot(axes, a, b):
    # The precision that a caller sets is that of float32. The compiler of kernels for a TPU refuses
    # another one for bfloat16, whose products are exact.
    precision = None if a.dtype == b.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jnp.einsum(axes, a, b, precision=precision, preferred_element_type=jnp.float32)


@functools.partial(own_gradient, nondiff_argnums=(2,))
def _rows_by_rows(a, b, scale):
    if a.dtype == jnp.float32:
        return _dot('bkth,bksh->bkts', scale * a, b)  # scales `a`, which is smaller than the tile
    return scale * _dot('bkth,bksh->bkts', a, b)


@own_gradient
def _rows_by_columns(w, v):
    return _dot('bkts,bksh->bkth', w, v)


def _columns_by_columns(tile, a):
    product = _dot('bkht,bkts->bkhs', a.swapaxes(2, 3), tile)
    # Without the barrier XLA turns the product back into the slow form.
    return jax.lax.optimization_barrier(product).swapaxes(2, 3)


def _rows_by_rows_bwd(scale, operands, g):
    a, b = operands
    g = g.astype(a.dtype)  # not scaled before the products: a bias reads the same large tile
    d_a, d_b = scale * _dot('bkts,bksh->bkth', g, b), scale * _columns_by_columns(g, a)
    return d_a.astype(a.dtype), d_b.astype(b.dtype)


_rows_by_rows.defvjp(lambda a, b, scale: (_rows_by_rows(a, b, scale), (a, b)), _rows_by_rows_bwd)


def _rows_by_columns_bwd(operands, g):
    w, v = operands
    g = g.astype(v.dtype)
    return _dot('bkth,bksh->bkts', g, v).astype(w.dtype), _columns_by_columns(w, g).astype(v.dtype)


_rows_by_columns.defvjp(lambda w, v: (_rows_by_columns(w, v), (w, v)), _rows_by_columns_bwd)


def over_batch(a: Float[Array, '#B N T S'], batch: int) -> Float[Array, 'B N T S']:
    """The array for all rows of a batch. An array that the rows share is evaluated once instead of
    in every row that reads it.
    """
    return a if a.shape[0] == batch else _over_batch(a, batch)


@functools.partial(own_gradient, nondiff_argnums=(1,))
def _over_batch(a, batch):
    return jnp.broadcast_to(jax.lax.optimization_barrier(a), (batch, *a.shape[1:]))


def _over_batch_bwd(batch, _, g):
    if isinstance(batch, int) and batch <= 16:  # XLA fuses this sum with the computation of `g`
        return (functools.reduce(jnp.add, [g[row] for row in range(batch)])[None],)
    # As a product this is 25 times faster on CPU than as a sum.
    return (jnp.tensordot(jnp.ones(batch, g.dtype), g, 1)[None],)


_over_batch.defvjp(lambda a, batch: (_over_batch(a, batch), None), _over_batch_bwd)


def heads_first(feature: Array) -> Array:
    """A per-token feature [#B, L, heads, ...] as [#B, heads, L, ...]."""
    return jnp.swapaxes(feature, 1, 2)
