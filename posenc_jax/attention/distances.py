"""Distances of pairs of tokens, and logarithms of them, as kernels compute them."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from posenc_jax.attention.kernels.program import in_kernel
from posenc_jax.base.derivatives import own_gradient
from posenc_jax.protocol.families import signed_distance


def float_distance(q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S']) -> Float[Array, '#B T S']:
    """`signed_distance` in float32.

    In a kernel, whole positions become floats before those of pairs are subtracted, which saves an
    operation for each pair. They are counted from the first key of the tile, and floats hold them
    exactly up to 2^24 positions from there.

    Example:
      >>> float_distance(jnp.array([[5]]), jnp.array([[5, 3]])).tolist()
      [[[0.0, 2.0]]]
    """
    if in_kernel() and all(jnp.issubdtype(pos.dtype, jnp.integer) for pos in (q_pos, k_pos)):
        first = k_pos[:, :1]
        q_pos, k_pos = ((pos - first).astype(jnp.float32) for pos in (q_pos, k_pos))
    return signed_distance(q_pos, k_pos).astype(jnp.float32)


def log1p_of_product(a: Float[Array, '...'], distance: Float[Array, '...']) -> Float[Array, '...']:
    """`ln(1 + a d)` of distances d >= 0.

    Its derivative has 1 / (1 + a d), which a kernel computes as a power of e, and not by a division
    for each pair.

    Args:
      a: >= 0, with as many axes as `distance`; in a kernel, which computes one head, each has one
        entry.

    Example:
      >>> log1p_of_product(jnp.ones(1), jnp.array([0.0, 1.0])).round(4).tolist()
      [0.0, 0.6931]
    """
    return _log1p(a, distance) if in_kernel() else jnp.log1p(a * distance)


@own_gradient
def _log1p(a, distance):
    return jnp.log1p(a * distance)


def _log1p_fwd(a, distance):
    found = _log1p(a, distance)
    return found, (a, distance, found)


def _log1p_bwd(kept, g):
    a, distance, found = kept
    g = g * jnp.exp(-found)
    return (g * distance).sum(keepdims=True), g * a


_log1p.defvjp(_log1p_fwd, _log1p_bwd)
