"""The products of attention, in float32, whose query heads share key heads, and the linear map of
layers; all with gradients that a CPU computes fast.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from posenc_jax.base.derivatives import own_gradient
from posenc_jax.base.meshes import explicit_spec, with_auto_axes


def scaled_dot_product(
    q: Float[Array, 'B N T H'], k: Float[Array, 'B K S H']
) -> Float[Array, 'B N T S']:
    """`q k^T / sqrt(H)` in float32; each of the K key heads serves N // K consecutive query
    heads.
    """
    b, n, t, h = q.shape
    kv, s = k.shape[1], k.shape[2]
    out: Any = _scaled_rows(q.reshape(b, kv, n // kv * t, h), k, h**-0.5)
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
def _scaled_rows(a, b, scale):
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


def _scaled_rows_bwd(scale, operands, g):
    a, b = operands
    g = g.astype(a.dtype)  # not scaled before the products: a bias reads the same large tile
    d_a, d_b = scale * _dot('bkts,bksh->bkth', g, b), scale * _columns_by_columns(g, a)
    return d_a.astype(a.dtype), d_b.astype(b.dtype)


_scaled_rows.defvjp(lambda a, b, scale: (_scaled_rows(a, b, scale), (a, b)), _scaled_rows_bwd)


def _rows_by_columns_bwd(operands, g):
    w, v = operands
    g = g.astype(v.dtype)
    return _dot('bkth,bksh->bkts', g, v).astype(w.dtype), _columns_by_columns(w, g).astype(v.dtype)


_rows_by_columns.defvjp(lambda w, v: (_rows_by_columns(w, v), (w, v)), _rows_by_columns_bwd)


def rows_by_rows(a: Float[Array, 'B N T H'], b: Float[Array, 'B N S H']) -> Float[Array, 'B N T S']:
    """`a b^T` in float32, with the gradients of the products of attention."""
    return _scaled_rows(a, b, 1.0)


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


@own_gradient
def linear(x: Float[Array, '... D'], w: Float[Array, 'D F']) -> Float[Array, '... F']:
    """`x w`, in the dtype of `x`.

    Its gradient is written by hand, so that the product that gives the gradient of `w` transposes
    the narrower operand. Automatic differentiation transposes the operand of width F, together with
    everything that XLA fuses into it, which is a third of a train step on CPU.
    """
    return x @ w.astype(x.dtype)


def _linear_bwd(operands, g):
    x, w = operands
    rows = lambda a: a.reshape(-1, a.shape[-1])
    narrow = w.shape[0] <= w.shape[1]
    product = lambda x, g: rows(x).T @ rows(g) if narrow else (rows(g).T @ rows(x)).T
    # On a mesh with Explicit axes, which may cut the rows, the gradient is placed like `w`.
    spec = explicit_spec(w)
    d_w = product(x, g) if spec is None else with_auto_axes(product, spec, x, g)
    return g @ w.astype(x.dtype).T, d_w.astype(w.dtype)


linear.defvjp(lambda x, w: (linear(x, w), (x, w)), _linear_bwd)


def heads_first(feature: Array) -> Array:
    """A per-token feature [#B, L, heads, ...] as [#B, heads, L, ...]."""
    return jnp.swapaxes(feature, 1, 2)
