"""Numbers as rows of digits, least significant first, zero beyond a number's end."""

import numpy as np
from jaxtyping import Int


def random_numbers(
    rng: np.random.Generator, count: Int[np.ndarray, ' B'], width: int
) -> Int[np.ndarray, 'B L']:
    """Uniform random numbers of `count` digits; only one-digit numbers may begin with 0.

    Example:
      >>> random_numbers(np.random.default_rng(0), np.array([2]), 3)[0, 2].tolist()
      0
    """
    digits = rng.integers(0, 10, (len(count), width))
    lead = rng.integers(1, 10, len(count))
    row = np.arange(len(count))
    digits[row, count - 1] = np.where(count > 1, lead, digits[row, 0])
    return np.where(np.arange(width) < count[:, None], digits, 0)


def written(digits: Int[np.ndarray, 'B L'], count: Int[np.ndarray, ' B']) -> Int[np.ndarray, 'B L']:
    """The first `count` digits, most significant first; the columns behind them are meaningless.

    Example:
      >>> written(np.array([[3, 2, 1]]), np.array([3])).tolist()
      [[1, 2, 3]]
    """
    return np.take_along_axis(
        digits, (count[:, None] - 1 - np.arange(digits.shape[1])) % digits.shape[1], axis=1
    )
