"""Numbers as rows of digits, least significant first, zero beyond a number's end."""

import numpy as np
from jaxtyping import Int


def random_numbers(
    rng: np.random.Generator, count: Int[np.ndarray, ' B'], width: int
) -> Int[np.ndarray, 'B L']:
    """Uniform random numbers of `count` digits; only one-digit numbers may begin with 0."""
    digits = rng.integers(0, 10, (len(count), width))
    lead = rng.integers(1, 10, len(count))
    row = np.arange(len(count))
    digits[row, count - 1] = np.where(count > 1, lead, digits[row, 0])
    return np.where(np.arange(width) < count[:, None], digits, 0)


def written(digits: Int[np.ndarray, 'B L'], count: Int[np.ndarray, ' B']) -> Int[np.ndarray, 'B L']:
    """The first `count` digits, most significant first; the columns behind them are meaningless."""
    return np.take_along_axis(
        digits, (count[:, None] - 1 - np.arange(digits.shape[1])) % digits.shape[1], axis=1
    )


def digits_of(number: Int[np.ndarray, 'B L']) -> Int[np.ndarray, ' B']:
    """How many digits each number has without leading zeros; 1 for zero."""
    return np.where(number.any(1), number.shape[1] - np.argmax(number[:, ::-1] != 0, axis=1), 1)
