"""Numbers of twice the precision of float32, for values that are known only when the program
runs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.base.meshes import vary, varying_axes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Double:
    """A number of 48 bits, held as the sum `high + low` of two float32 arrays.

    The error of one operation is about 2**-46 of its arguments. The operators are `+ - * /`, also
    with plain numbers, and `**` with whole numbers. A `Double` is a pytree, and `numpy.asarray`
    makes float64 of it. XLA may contract `a * b + c` to one rounding, so nothing here depends on
    how a product is rounded: factors are split into halves of 12 bits, whose products are exact,
    and corrections come from sums alone.

    Attributes:
      high: the value to the nearest float32.
      low: the rest, at most half of the last bit of `high`.

    Example:
      >>> third = 1.0 / Double.of(3.0)
      >>> [bool(abs(np.float64(a) - 1 / 3) < 1e-13) for a in (third.high, np.asarray(third))]
      [False, True]
    """

    high: Float[Array | np.ndarray, '...']
    low: Float[Array | np.ndarray, '...']

    __array_ufunc__ = None  # so that numpy leaves operators to this class

    @classmethod
    def of(cls, value: 'Double | Array | np.ndarray | float') -> 'Double':
        """The value as a `Double`: numbers and numpy arrays to 48 bits, jax arrays of 32-bit floats
        or integers exactly.

        Example:
          >>> int(np.asarray(Double.of(jnp.array(2**31 - 1))))
          2147483647
        """
        if isinstance(value, Double):
            return value
        if not isinstance(value, jax.Array):
            high = np.asarray(value, np.float32)
            return cls(high, np.asarray(value - high.astype(np.float64), np.float32))
        if jnp.issubdtype(value.dtype, jnp.inexact):
            return cls(value.astype(jnp.float32), jnp.zeros(value.shape, jnp.float32))
        most = value >> 12 << 12
        return _sum(most.astype(jnp.float32), (value - most).astype(jnp.float32))

    def __array__(self, dtype=None, copy=None):
        return np.asarray(
            np.asarray(self.high, np.float64) + np.asarray(self.low, np.float64), dtype
        )

    def __getitem__(self, index) -> 'Double':
        return Double(self.high[index], self.low[index])

    def __neg__(self):
        return Double(-self.high, -self.low)

    def __add__(self, other):
        other = Double.of(other)
        both = _sum(self.high, other.high)
        return _sum(both.high, both.low + (self.low + other.low))

    def __mul__(self, other):
        other = Double.of(other)
        (a1, a0), (b1, b0) = _halves(self.high), _halves(other.high)
        cross = _sum(a1 * b0, a0 * b1)
        main = _sum(a1 * b1, cross.high)
        rest = cross.low + a0 * b0 + (self.high * other.low + self.low * other.high)
        return _sum(main.high, main.low + rest)

    def __sub__(self, other):
        return self + -Double.of(other)

    def __rsub__(self, other):
        return -self + other

    def __truediv__(self, other):
        other = Double.of(other)
        guess = 1.0 / other.high
        inverse = Double(guess, jnp.zeros_like(guess))
        # A step of Newton's method doubles the number of correct digits.
        return self * (inverse * (2.0 - other * inverse))

    def __rtruediv__(self, other):
        return Double.of(other) / self

    __radd__, __rmul__ = __add__, __mul__

    def __pow__(self, exponent: int | Int[np.ndarray, '...']) -> 'Double':
        """`self ** exponent` by repeated squaring; exponents are at least 0."""
        exponent, most = np.asarray(exponent), int(np.max(exponent))

        # A loop of the program, because an unrolled chain of products takes seconds to compile.
        def step(bit, powers):
            result, square = powers
            return choose(exponent >> bit & 1 == 1, result * square, result), square * square

        one = jnp.ones(jnp.broadcast_shapes(self.high.shape, exponent.shape), jnp.float32)
        begin = _alike((Double(one, jnp.zeros_like(one)), self))
        return jax.lax.fori_loop(0, most.bit_length(), step, begin)[0]


def choose(condition: Bool[Array, '...'], this: Double, other: Double) -> Double:
    """`this` where the condition holds, `other` elsewhere; shapes broadcast.

    Example:
      >>> np.asarray(choose(jnp.array([True, False]), Double.of(0.5), Double.of(0.25))).tolist()
      [0.5, 0.25]
    """
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), this, other)


def root_powers(x: Double, n: int) -> Double:
    """`x^(-t/n)` for t = 0 .. n, on a new last axis.

    They are whole powers of the n-th root of 1/x, which Newton's method finds.

    Args:
      x: positive.
      n: at least 1.

    Example:
      >>> np.asarray(root_powers(Double.of(jnp.array(16.0)), 4)).tolist()
      [1.0, 0.5, 0.25, 0.125, 0.0625]
    """
    root, _ = _alike((Double.of(jnp.exp(jnp.log(x.high) / -n)), x))
    root = jax.lax.fori_loop(
        0, 2, lambda _, root: root + root * (1.0 - x * root**n) * (1.0 / n), root
    )
    return root[..., None] ** np.arange(n + 1)


def _alike(tree):
    """The tree with every leaf marked as varying over the mesh axes of all of them, as a loop needs
    it inside `jax.shard_map`.
    """
    return vary(tree, varying_axes(tree))


def _sum(a, b):
    """The sum of two float32 arrays and its rounding error, exactly."""
    total = a + b
    of_b = total - a
    return Double(total, (a - (total - of_b)) + (b - of_b))


def _halves(x):
    """The upper 12 bits of a significand, and the lower 12."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(x), jnp.uint32)
    upper = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFFF000), jnp.float32)
    return upper, x - upper
