"""The seven regression tasks of positional attention: functions of lists of numbers, most of them
evaluated on every prefix.

Inputs and targets are [B, L]. An interval is drawn for each row, and the numbers of the row lie in
it. Test data differ from training data in the range of these intervals.

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
    """The median of every prefix: for an even count, the mean of the two middle numbers."""
    return np.stack([np.median(x[:, :end], axis=1) for end in range(1, x.shape[1] + 1)], axis=1)


def prefix_subarray_sum(x: Rows) -> Rows:
    """The largest sum of a non-empty run of consecutive numbers within every prefix."""
    ending_here, columns = x[:, 0], [x[:, 0]]
    for column in x.T[1:]:
        ending_here = np.maximum(column, ending_here + column)
        columns.append(ending_here)
    return np.maximum.accumulate(np.stack(columns, axis=1), axis=1)


def prefix_minimum_of_sums(x: Rows) -> Rows:
    """The minimum of every prefix of the elementwise sum of the two halves of a row, written twice;
    ValueError for an odd number of columns.
    """
    if x.shape[1] % 2:
        raise ValueError(
            'minsum adds the two halves of a row and needs an even number of columns, got rows of '
            f'{x.shape[1]} numbers; use {x.shape[1] + 1}'
        )
    first, second = np.split(x, 2, axis=1)
    return np.tile(np.minimum.accumulate(first + second, axis=1), 2)


@dataclasses.dataclass(frozen=True)
class NumberTask:
    """A function of rows of numbers, of inputs [B, L] to targets [B, L], and how many lists stand
    side by side in a random row.
    """

    answer: Callable[[Rows], Rows]
    lists: int = 1

    def sample(
        self, rng: np.random.Generator, batch: int, length: int, scale: float = 1.0
    ) -> tuple[Rows, Rows]:
        """Draws float32 inputs [batch, lists * length], and computes their targets.

        For each row an interval within [-2 scale, 2 scale] is drawn, and the numbers of the row are
        uniform in it. Training has scale 1. With a larger scale, intervals within [-2, 2] are drawn
        again, so that every interval reaches beyond the range of training.

        Raises:
          ValueError: batch or length below 1, or a scale below 1.
        """
        for name, value in (('batch', batch), ('length', length), ('scale', scale)):
            if not value >= 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        low, high = np.split(intervals(rng, batch, scale), 2, axis=1)
        x = rng.uniform(low, high, (batch, self.lists * length)).astype(np.float32)
        return x, self.answer(x)


def intervals(rng: np.random.Generator, batch: int, scale: float) -> Float[np.ndarray, 'B 2']:
    """Draws the two sorted ends of the interval of each row; see `NumberTask.sample`."""
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
