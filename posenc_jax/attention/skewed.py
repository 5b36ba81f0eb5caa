"""Products of tokens with vectors of the distance, in tiles where the distance falls by one from
each key to the next, and grows by one from each query to the next.

T queries and S keys at such positions have T + S - 1 distances. A query meets the vectors of S of
them, and the next query those that are moved by one. So a few neighbouring tokens are multiplied
with all vectors that any of them meets, and each row of the products is then moved by its place: it
is skewed.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from posenc_jax.base.derivatives import own_gradient
from posenc_jax.base.products import rows_by_rows

# How many tokens are multiplied together. More of them make wider products, of which less is read.
_GROUP = 32


def query_products(
    q: Float[Array, 'B N T H'], rows: Float[Array, 'C N H']
) -> Float[Array, 'B N T S']:
    """`q_i . rows[i - j + S - 1]`, i and j the places of query and key in the tile, float32.

    Args:
      q: queries, heads first.
      rows: a vector for each head and distance, from the smallest distance on; C = T + S - 1.

    Example:
      >>> rows = jnp.array([10.0, 20.0, 30.0, 40.0])[:, None, None]
      >>> query_products(jnp.ones((1, 1, 2, 1)), rows)[0, 0].tolist()
      [[30.0, 20.0, 10.0], [40.0, 30.0, 20.0]]
    """
    return _products(q, rows[::-1])


def key_products(
    k: Float[Array, 'B N S H'], rows: Float[Array, 'C N H']
) -> Float[Array, 'B N T S']:
    """`k_j . rows[i - j + S - 1]`; there is a key for each query head.

    Example:
      >>> rows = jnp.array([10.0, 20.0, 30.0, 40.0])[:, None, None]
      >>> key_products(jnp.ones((1, 1, 3, 1)), rows)[0, 0].tolist()
      [[30.0, 20.0, 10.0], [40.0, 30.0, 20.0]]
    """
    return jnp.swapaxes(_products(k, rows), 2, 3)


def _products(x: Float[Array, 'B N L H'], rows: Float[Array, 'C N H']) -> Float[Array, 'B N L M']:
    """`x_l . rows[L - 1 - l + m]`, C = L + M - 1."""
    batch, heads, length, width = x.shape
    size, many = math.gcd(length, _GROUP), len(rows) - length + 1
    count = length // size
    # The batch is a part of the rows of each product.
    groups = x.astype(jnp.float32).reshape(batch, heads, count, size, width)
    groups = groups.transpose(1, 2, 0, 3, 4).reshape(heads, count, batch * size, width)
    # A group of R tokens meets R + M - 1 vectors; with one more the products have an even width.
    rows, first = jnp.concatenate([rows, rows[:1]]), length - size
    windows = [rows[first - n * size : first - n * size + size + many] for n in range(count)]
    found = rows_by_rows(groups, jnp.stack(windows).transpose(2, 0, 1, 3))
    found = skewed(found.reshape(heads, count, batch, size, -1), many)
    return found.transpose(2, 0, 1, 3, 4).reshape(batch, heads, length, many)


@functools.partial(own_gradient, nondiff_argnums=(1,))
def skewed(a: Float[Array, '*B R W'], count: int) -> Float[Array, '*B R M']:
    """`out[r, m] = a[r, R - 1 - r + m]`, M = `count`; W = R + M.

    Example:
      >>> skewed(jnp.array([[1, 2, 3, 0], [4, 5, 6.0, 0]]), 2).tolist()
      [[2.0, 3.0], [4.0, 5.0]]
    """
    *lead, size, width = a.shape
    # Laid out in a row, the numbers of a row of the result begin `width - 1` places apart.
    flat = jax.lax.optimization_barrier(a.reshape(*lead, size * width))
    flat = jax.lax.slice_in_dim(flat, size - 1, size - 1 + size * (width - 1), axis=-1)
    return flat.reshape(*lead, size, width - 1)[..., :count]


def _skewed_bwd(count, _, g):
    *lead, size, _ = g.shape
    none = [(0, 0)] * len(lead)
    between = jax.lax.optimization_barrier(jnp.pad(g, [*none, (0, 0), (size - 1, size)]))
    cut = lambda row, first: jax.lax.dynamic_slice_in_dim(row, first, size + count, axis=-1)
    return (jax.vmap(cut, (len(lead), 0), len(lead))(between, jnp.arange(size)),)


skewed.defvjp(lambda a, count: (skewed(a, count), None), _skewed_bwd)
