"""Rotary angles that stay right at very large positions and in low precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.base.double import Double

TWO_PI = 2.0 * np.pi


def phase(
    pos: Num[Array, '...'], inv_freq: Float[Array, '... F'] | Double | np.ndarray
) -> Float[Array, '... F']:
    """The angle `pos * inv_freq`, reduced to [-pi, pi) without the rounding of a float32 product.

    The frequency is held as turns per position in 64-bit fixed point (two uint32 words), so the
    fraction of a turn of an integer position is an exact integer product modulo 2**64. The error is
    that of the last conversion to float32, about 3e-7 rad, at every position; a float32 product is
    off by 1e-1 rad at position 2e6.

    Args:
      pos: positions; integers in (-2**31, 2**31), or floats, whose fractional part is handled apart
        (its angle is added after the reduction).
      inv_freq: radians per position, broadcast against `pos[..., None]`. A numpy array is read in
        float64. A `Double` (frequencies that depend on the length) is exact for its 48 bits, a jax
        array (learned frequencies) for its float32 value; both are differentiable. Traced
        frequencies of 2**31 and more, or not finite, give NaN.

    Returns:
      float32 angles, shape of `pos[..., None] * inv_freq`.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> (
      ...     round(float(phase(jnp.array([2_000_001]), np.array([0.1]))[0, 0]), 5),
      ...     round(200000.1 % (2 * np.pi), 5),
      ... )
      (0.02849, 0.02849)
    """
    if isinstance(inv_freq, np.ndarray):
        return _fixed_point_phase(pos, *_fixed_point(inv_freq), inv_freq.astype(np.float32))
    return _phase(
        pos, (inv_freq.high, inv_freq.low) if isinstance(inv_freq, Double) else (inv_freq,)
    )


@jax.custom_jvp
def _phase(pos, parts):
    """The angle for a frequency that is the sum of float32 `parts`; the first part is the float32
    nearest to the sum.
    """
    bounded = lambda part: jnp.where(jnp.abs(part) < 2.0**31, part, jnp.nan)
    # XLA does not fuse a loop with what follows. Fused, it would compute the frequencies again for
    # every element.
    high, low, parts = jax.lax.map(
        lambda part: (*_fixed_point_traced(part), bounded(part)),
        jnp.stack(parts).astype(jnp.float32),
    )
    words = functools.reduce(_add, zip(high, low))
    return jnp.where(jnp.isnan(parts[0]), jnp.nan, _fixed_point_phase(pos, *words, parts[0]))


@_phase.defjvp
def _phase_jvp(primals, tangents):
    pos, parts = primals
    d_pos, d_parts = tangents
    tangent = pos[..., None].astype(jnp.float32) * sum(d_parts)
    if jnp.issubdtype(pos.dtype, jnp.inexact):
        tangent = tangent + d_pos[..., None] * parts[0]
    return _phase(pos, parts), tangent


def _fixed_point(inv_freq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fraction of a turn per position as (high, low) words of a 64-bit fixed-point number."""
    turns = np.asarray(inv_freq, np.float64) / TWO_PI
    scaled = np.abs(turns) % 1.0 * 2.0**32
    high = np.floor(scaled)
    fixed = (high.astype(np.uint64) << np.uint64(32)) + ((scaled - high) * 2.0**32).astype(
        np.uint64
    )
    # Integers are negated without a rounding error; 1 - turns would be rounded.
    fixed = np.where(turns < 0, ~fixed + np.uint64(1), fixed)
    return (fixed >> np.uint64(32)).astype(np.uint32), (fixed & np.uint64(0xFFFFFFFF)).astype(
        np.uint32
    )


# 2**96 / (2 pi), most significant word last.
_INVERSE_TWO_PI = (0x7F09D5F4, 0x9391054A, 0x28BE60DB)


def _fixed_point_traced(inv_freq: Array) -> tuple[Array, Array]:
    """`_fixed_point` for traced float32 values: the 24-bit significand times 96 bits of
    1 / (2 pi), shifted by the exponent. It uses integers alone, which no compiler contracts or
    reorders.
    """
    bits = jax.lax.bitcast_convert_type(inv_freq, jnp.uint32)
    exponent = (bits >> 23) & jnp.uint32(0xFF)
    significand = jnp.where(
        exponent == 0, jnp.uint32(0), (bits & jnp.uint32(0x7FFFFF)) | jnp.uint32(0x800000)
    )
    words, carried = [], jnp.zeros_like(significand)
    for word in _INVERSE_TWO_PI:
        low = significand * jnp.uint32(word) + carried
        carried = _multiply_high(significand, jnp.uint32(word)) + (low < carried).astype(jnp.uint32)
        words.append(low)
    words.append(carried)
    # value = significand * 2**(exponent - 150), so the product holds turns * 2**(96 + 150 -
    # exponent). The result is turns * 2**64.
    shift = jnp.uint32(182) - exponent
    padded = jnp.stack([*words, *[jnp.zeros_like(carried)] * 6])
    at = lambda number: jnp.take_along_axis(
        padded, (shift // 32 + number)[None].astype(jnp.int32), axis=0
    )[0]
    rest = shift % 32
    join = lambda below, above: jnp.where(
        rest == 0, below, (below >> rest) | (above << (jnp.uint32(32) - rest))
    )
    low, high = join(at(0), at(1)), join(at(1), at(2))
    negative = bits >> 31 == 1
    return jnp.where(negative, ~high + (low == 0), high), jnp.where(
        negative, ~low + jnp.uint32(1), low
    )


def _fixed_point_phase(pos, high, low, inv_freq):
    pos = jnp.asarray(pos)[..., None]
    fraction = None
    if jnp.issubdtype(pos.dtype, jnp.inexact):
        pos = pos.astype(jnp.float32)
        whole = jnp.floor(pos)
        fraction, pos = pos - whole, whole.astype(jnp.int32)
    negative = pos < 0
    unsigned = pos.astype(jnp.uint32)
    turns = unsigned * high + _multiply_high(unsigned, jnp.asarray(low, jnp.uint32))
    turns = turns - jnp.where(negative, low, jnp.uint32(0))  # two's complement read as pos + 2**32
    angle = jax.lax.bitcast_convert_type(turns, jnp.int32).astype(jnp.float32) * np.float32(
        TWO_PI / 2.0**32
    )
    return angle if fraction is None else angle + fraction * inv_freq


def _add(a, b):
    """The sum of two (high, low) words modulo 2**64."""
    low = a[1] + b[1]
    return a[0] + b[0] + (low < b[1]).astype(jnp.uint32), low


def _multiply_high(a, b):
    """Upper 32 bits of the 64-bit product of two uint32 arrays."""
    mask = jnp.uint32(0xFFFF)
    a1, a0, b1, b0 = a >> 16, a & mask, b >> 16, b & mask
    middle1, middle2 = a1 * b0, a0 * b1
    carry = ((middle1 & mask) + (middle2 & mask) + ((a0 * b0) >> 16)) >> 16
    return a1 * b1 + (middle1 >> 16) + (middle2 >> 16) + carry
