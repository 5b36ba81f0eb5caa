"""A task that asks where the marked patches of a picture lie, which positions alone tell."""

import dataclasses
import functools
import itertools
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from posenc_jax.lab.tasks.prompt import LabelTask
from posenc_jax.lab.tasks.task import Length
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.registry import register


@functools.lru_cache(maxsize=256)
def cell_pairs(rows: int, columns: int) -> tuple[Int[np.ndarray, 'P 2'], Bool[np.ndarray, ' P']]:
    """All pairs of different cells of a grid, counted row by row, and whether a diagonal, in either
    direction, has both.
    """
    pairs = np.array(list(itertools.combinations(range(rows * columns), 2)))
    row, column = np.divmod(pairs, columns)
    return pairs, abs(row[:, 0] - row[:, 1]) == abs(column[:, 0] - column[:, 1])


@register('marked_patches', kind='task')
@dataclasses.dataclass(frozen=True)
class MarkedPatches(LabelTask):
    """Where the marked patches of a picture lie. All other patches are the same, so positions alone
    tell.

    Of 'diagonal' two patches are marked, and the class is 1 if one diagonal, in either direction,
    has both, and 0 otherwise, each as often. Of 'quadrant' one patch is marked, and the class is
    the quarter that it lies in, 0 to 3 row by row; it is never in the middle row or column. The
    task length is the number of rows and of columns; with a range both are drawn independently, and
    an int gives a square. Patches are tokens, written row by row, with positions (row, column).

    Args:
      question: 'diagonal' or 'quadrant'.
      most: how many patches a picture of a range of lengths has at most; None is no limit.

    Raises:
      ValueError: a range all of whose pictures have more than `most` patches.

    Example:
      >>> task = MarkedPatches('quadrant')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=3)
      >>> task.decode(batch['tokens'][0]), batch['targets'].tolist()
      ('........x', [[3]])
    """

    question: Literal['diagonal', 'quadrant'] = 'diagonal'
    most: Size | None = None

    counted = 'number of rows and columns'
    names = '.x_'
    predicts = 'class'
    shortest = 2
    supplies_positions = True

    @property
    def output_size(self) -> int:
        return 2 if self.question == 'diagonal' else 4

    def sizes(self, low: int, high: int) -> list[tuple[int, int]]:
        """The rows and columns that a picture of these lengths may have."""
        every = itertools.product(range(low, high + 1), repeat=2)
        limit = high**2 if low == high or self.most is None else self.most
        return [(rows, columns) for rows, columns in every if rows * columns <= limit]

    def range(self, length: Length) -> tuple[int, int]:
        low, high = super().range(length)
        if not self.sizes(low, high):
            raise ValueError(
                f'pictures of at least {low} rows and columns have more than most={self.most} '
                f'patches; nearest: most={low**2}'
            )
        return low, high

    def width(self, length: Length) -> int:
        return max(rows * columns for rows, columns in self.sizes(*self.range(length)))

    def draw(self, rng, batch, low, high):
        sizes = np.array(self.sizes(low, high))
        drawn = sizes[rng.integers(0, len(sizes), batch)]
        cell, (rows, columns) = np.arange(self.width((low, high))), drawn.T[:, :, None]
        classes = rng.integers(0, self.output_size, batch)
        valid = cell < rows * columns
        tokens = np.where(valid, 0, self.names.index('_'))
        for own, size, label in zip(tokens, drawn.tolist(), classes):
            own[self._marked(rng, *size, int(label))] = self.names.index('x')
        places = np.stack(np.divmod(cell, columns), axis=-1)
        further = {
            'positions': np.where(valid[..., None], places, 0).astype(np.int32),
            'valid': valid,
        }
        return tokens, classes[:, None], np.ones((batch, 1)), further

    def _marked(self, rng, rows, columns, label):
        if self.question == 'diagonal':
            pairs, on_one = cell_pairs(rows, columns)
            return rng.choice(pairs[on_one == label])
        lower, right = divmod(label, 2)
        of = lambda count, last: rng.integers(0, count // 2) + last * (count - count // 2)
        return of(rows, lower) * columns + of(columns, right)
