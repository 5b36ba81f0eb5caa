"""Functions of every prefix of a list of numbers: the seven regression tasks that positional
attention was studied on.

Inputs and targets are [B, L]. The lists of a row lie in an interval of its own, which is what
changes between training and test.

Reference: Back de Luca, Giapitzakis, Yang, Veličković, Fountoulakis, "Positional Attention:
Expressivity and Learnability of Algorithmic Computation", arXiv 2410.01686; official code
opallab/positional_attention.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

SPAN = 2.0  # intervals of training lie in [-SPAN, SPAN]
Rows = Float[np.ndarray, 'B L']


def prefix_median(x: Rows) -> Rows:
    """The median of every prefix, between the two middle ones where their number is even.

    Example:
      >>> prefix_median(np.array([[3.0, 1.0, 2.0]])).tolist()
      [[3.0, 2.0, 2.0]]
    """
    return np.stack([np.median(x[:, :end], axis=1) for end in range(1, x.shape[1] + 1)], axis=1)


def prefix_subarray_sum(x: Rows) -> Rows:
    """The largest sum of consecutive numbers, at least one, within every prefix.

    Example:
      >>> prefix_subarray_sum(np.array([[1.0, -2.0, 3.0]])).tolist()
      [[1.0, 1.0, 3.0]]
    """
    ending_here, columns = x[:, 0], [x[:, 0]]
    for column in x.T[1:]:
        ending_here = np.maximum(column, ending_here + column)
        columns.append(ending_here)
    return np.maximum.accumulate(np.stack(columns, axis=1), axis=1)


def prefix_minimum_of_sums(x: Rows) -> Rows:
    """The two halves of a row are added number by number; the minimum of every prefix of that, for
    each half.

    Raises:
      ValueError: an odd number of columns.

    Example:
      >>> prefix_minimum_of_sums(np.array([[1.0, 2.0, 5.0, 0.0]])).tolist()
      [[6.0, 2.0, 6.0, 2.0]]
    """
    if x.shape[1] % 2:
        raise ValueError(
            f'minsum adds the two halves of a row, got rows of {x.shape[1]} numbers; use '
            f'{x.shape[1] + 1}'
        )
    first, second = np.split(x, 2, axis=1)
    return np.tile(np.minimum.accumulate(first + second, axis=1), 2)


@dataclasses.dataclass(frozen=True)
class NumberTask:
    """A function of lists of numbers, and what it is asked about.

    Args:
      answer: [B, L] to [B, L].
      lists: how many lists stand side by side in a row.
    """

    answer: Callable[[Rows], Rows]
    lists: int = 1

    def sample(
        self, rng: np.random.Generator, batch: int, length: int, scale: float = 1.0
    ) -> tuple[Rows, Rows]:
        """Float32 inputs and targets [batch, lists * length]; they depend on the arguments and the
        state of `rng` alone.

        Numbers are uniform in an interval that each row draws in [-2 scale, 2 scale], the interval
        of training at scale 1. Beyond that, intervals within [-2, 2] are drawn again.

        Args:
          rng: generator.
          batch: rows.
          length: numbers in a list.
          scale: c, how many times as wide as in training the range of the intervals is.

        Raises:
          ValueError: batch or length below 1, or a scale below 1.

        Example:
          >>> x, y = NUMBER_TASKS['cumsum'].sample(np.random.default_rng(0), 2, 3)
          >>> bool(np.allclose(x.cumsum(axis=1), y))
          True
        """
        for name, value in (('batch', batch), ('length', length), ('scale', scale)):
            if not value >= 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        low, high = np.split(intervals(rng, batch, scale), 2, axis=1)
        x = rng.uniform(low, high, (batch, self.lists * length)).astype(np.float32)
        return x, self.answer(x)


def intervals(rng: np.random.Generator, batch: int, scale: float) -> Float[np.ndarray, 'B 2']:
    """Two sorted ends in [-2 scale, 2 scale] a row; with a scale above 1, rows that lie within [-2,
    2] are drawn again.

    Example:
      >>> ends = intervals(np.random.default_rng(0), 100, 1.5)
      >>> bool((np.abs(ends).max(axis=1) > 2).all()), bool((np.abs(ends) <= 3).all())
      (True, True)
    """
    ends = np.sort(rng.uniform(-SPAN * scale, SPAN * scale, (batch, 2)), axis=1)
    while scale > 1 and (inside := (np.abs(ends) <= SPAN).all(axis=1)).any():
        ends[inside] = np.sort(rng.uniform(-SPAN * scale, SPAN * scale, (inside.sum(), 2)), axis=1)
    return ends


NUMBER_TASKS = {
    'cumsum': NumberTask(lambda x: np.cumsum(x, axis=1)),
    'cummin': NumberTask(lambda x: np.minimum.accumulate(x, axis=1)),
    'cummax': NumberTask(lambda x: np.maximum.accumulate(x, axis=1)),
    'median': NumberTask(prefix_median),
    'sort': NumberTask(lambda x: np.sort(x, axis=1)),
    'maxsub': NumberTask(prefix_subarray_sum),
    'minsum': NumberTask(prefix_minimum_of_sums, lists=2),
}
