"""Orthogonal matrices from skew ones: exponentials, their powers, and the map of Cayley.

All of them are products of matrices. A factorisation of LAPACK within a compiled program may wait
for ever on a CPU, see `orthonormal`.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LARGEST = 2.0**13  # the largest sum of the absolute entries of a column
_DOUBLINGS, _ORDER = 16, 5

_product = functools.partial(jnp.matmul, precision='highest')


def skew(a: Float[Array, '*N H H']) -> Float[Array, '*N H H']:
    """The upper triangle of each matrix minus its transpose, float32.

    Example:
      >>> skew(jnp.array([[7.0, 1.0], [5.0, 7.0]])).tolist()
      [[0.0, 1.0], [-1.0, 0.0]]
    """
    upper = jnp.triu(a.astype(jnp.float32), 1)
    return upper - upper.mT


def exponential_less_one(a: Float[Array, '*N H H']) -> Float[Array, '*N H H']:
    """`exp(A) - I`, float32, by scaling and squaring.

    It is the Taylor polynomial at A / 2^16, and then `U <- 2 U + U U` sixteen times. The identity
    is left out, because the small entries beside it would be rounded to its precision, and every
    squaring doubles that error. Matrices with a column whose absolute entries sum to more than
    8192 give NaN.

    Example:
      >>> exponential_less_one(jnp.array([[0.0, -jnp.pi], [jnp.pi, 0.0]])).round(3).tolist()
      [[-2.0, 0.0], [0.0, -2.0]]
    """
    a = a.astype(jnp.float32)
    known = jnp.abs(a).sum(-2).max(-1) <= LARGEST
    small, one = a * 2.0**-_DOUBLINGS, jnp.eye(a.shape[-1], dtype=jnp.float32)
    series = one + small / _ORDER
    for term in range(_ORDER - 1, 1, -1):
        series = one + _product(small, series) / term
    found = _product(small, series)
    for _ in range(_DOUBLINGS):
        found = squared_less_one(found)
    return jnp.where(known[..., None, None], found, jnp.nan)


def squared_less_one(u: Float[Array, '*N H H']) -> Float[Array, '*N H H']:
    """`W W - I` from `U = W - I`."""
    return 2 * u + _product(u, u)


def powers_less_one(u: Float[Array, '*N H H'], count: int) -> Float[Array, 'count *N H H']:
    """`W^(2^b) - I` of an orthogonal W from `U = W - I`, for b = 0 .. count - 1.

    A step of Newton's method makes each power orthogonal to rounding, or errors of the norm would
    double with every squaring, as those of the angles do.
    """

    def step(u, _):
        square = squared_less_one(u)
        excess = square + square.mT + _product(square.mT, square)
        return square - (excess + _product(square, excess)) / 2, u

    return jax.lax.scan(step, u, length=count)[1]


@jax.custom_jvp
def cayley(s: Float[Array, '*N H H']) -> Float[Array, '*N H H']:
    """`(I - S) (I + S)^-1` of skew S: orthogonal, and without the eigenvalue -1. float32.

    I + S is inverted by the elimination of Gauss and Jordan. Its pivots are at least 1, so none is
    chosen. A step of Newton's method then makes the result orthogonal to rounding.

    Example:
      >>> cayley(jnp.array([[0.0, 1.0], [-1.0, 0.0]])).round(3).tolist()
      [[0.0, -1.0], [1.0, 0.0]]
    """
    one = jnp.eye(s.shape[-1], dtype=jnp.float32)

    def eliminate(a, unit):
        # The inverse grows in place of the columns that are eliminated.
        column, row = (a * unit).sum(-1, keepdims=True), (a * unit[:, None]).sum(-2, keepdims=True)
        pivot = (row * unit).sum(-1, keepdims=True)
        row = jnp.where(unit > 0, 1.0, row) / pivot
        rest = jnp.where(unit > 0, 0.0, a) - column * row
        return jnp.where(unit[:, None] > 0, row, rest), None

    found = 2 * jax.lax.scan(eliminate, one + s.astype(jnp.float32), one)[0] - one
    return _product(found, 1.5 * one - 0.5 * _product(found.mT, found))


@cayley.defjvp
def _cayley_jvp(primals, tangents):
    found = cayley(primals[0])
    both = found + jnp.eye(found.shape[-1], dtype=jnp.float32)
    return found, -0.5 * _product(_product(both, tangents[0].astype(jnp.float32)), both)
