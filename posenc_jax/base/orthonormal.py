"""Rows made orthonormal, without LAPACK.

`jnp.linalg.qr` of several matrices waits, within a thread of XLA's pool, for other threads of the
pool. Two devices on one CPU of two cores that factorise at the same time then wait for each other
for ever (jaxlib 0.10), and training does not begin. These are operations that never wait.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def orthonormal_rows(a: Float[Array, '*N r D']) -> Float[Array, '*N r D']:
    """The rows of each matrix made orthonormal, in order: those that are already stay as they are.

    It is the Q of a QR factorisation of the transpose whose R has a positive diagonal: Gram and
    Schmidt's method, which subtracts the earlier rows twice, so that rounding does not add up
    (Giraud, Langou, Rozloznik and van den Eshof, Numerische Mathematik 101, 2005). In float32.

    Args:
      a: r <= D independent rows.

    Example:
      >>> orthonormal_rows(jnp.array([[2.0, 0.0], [1.0, 1.0]])).round(3).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    a = a.astype(jnp.float32)
    high = jax.lax.Precision.HIGHEST

    def add(done, number):
        row = jnp.take(a, number, axis=-2)
        for _ in range(2):
            parts = jnp.einsum('...rd,...d->...r', done, row, precision=high)
            row = row - jnp.einsum('...r,...rd->...d', parts, done, precision=high)
        row = row / jnp.linalg.norm(row, axis=-1, keepdims=True)
        return done.at[..., number, :].set(row), None

    return jax.lax.scan(add, jnp.zeros_like(a), jnp.arange(a.shape[-2]))[0]
