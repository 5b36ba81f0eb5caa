"""Index hints: a symbol before every digit that names its significance. The symbols are consecutive
in an ordered alphabet and start at a random place.

Reference: Zhou et al., "Transformers Can Achieve Length Generalization But Not Robustly", arXiv
2402.09371 (the format is that of Zhou et al., arXiv 2310.16028).
"""

from typing import Literal

import numpy as np
from jaxtyping import Int


def draw_hints(
    rng: np.random.Generator, count: Int[np.ndarray, ' B'], symbols: int
) -> Int[np.ndarray, ' B']:
    """Draws the lowest hint of each row, uniform in 0 .. symbols - count, so that `count`
    consecutive hints fit into the alphabet; ValueError if there are not so many.
    """
    if count.max() > symbols:
        most = count.max()
        raise ValueError(f'{most} digits need {most} index hints, but there are {symbols}')
    return rng.integers(0, symbols - count, endpoint=True)


def hinted(
    digits: Int[np.ndarray, 'B L'],
    count: Int[np.ndarray, ' B'],
    start: Int[np.ndarray, ' B'],
    reverse: bool,
    step: Literal[1, -1] = 1,
) -> tuple[Int[np.ndarray, 'B 2*L'], Int[np.ndarray, ' B']]:
    """Puts the hint `start + step k` before the digit of significance k (0 = least) of each row.

    Args:
      digits: in writing order; of row b the first `count[b]` are used.
      start: hint of the least significant digit.
      reverse: whether the least significant digit is written first.
      step: -1 for hints that ascend from the most significant digit.

    Returns:
      A piece for `join_ragged`.
    """
    column = np.arange(digits.shape[1])
    significance = column[None] if reverse else count[:, None] - 1 - column
    hints = start[:, None] + step * np.broadcast_to(significance, digits.shape)
    both = np.stack([hints, digits], axis=-1)
    return both.reshape(len(digits), -1), 2 * count
