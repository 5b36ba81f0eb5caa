"""Minesweeper generator: from the mines of a board to the number of mines around every cell."""

import dataclasses
from functools import partial

import numpy as np
from jaxtyping import Bool, Int

from posenc_jax.lab.tasks.coupling import IDS, Ids, coupled_grid_ids, supplied_ids
from posenc_jax.lab.tasks.task import (
    Batch,
    Length,
    Task,
    join_ragged,
    length_range,
    next_token_batch,
    one_token,
)
from posenc_jax.protocol.errors import SpecError, check_choice
from posenc_jax.protocol.registry import register

SYMBOLS = '012345678*.=$_'
MINE, FREE, EQUALS, BOUNDARY, PADDING = 9, 10, 11, 12, 13


@register('minesweeper', kind='task')
@dataclasses.dataclass(frozen=True)
class Minesweeper(Task):
    """`$*..*=*22*$`: a board of mines and free cells, then the same board with numbers of mines.

    The task length is the length of a side. With a range, both sides are drawn independently; an
    int gives a square. Boards are written cell by cell, row after row. A cell of the answer is a
    mine, or the number of mines among the eight cells around it. Loss on the answer and the closing
    `$`. Follows Cho et al., "Position Coupling: Improving Length Generalization of Arithmetic
    Transformers Using Task Structure", arXiv 2405.20671; a coupled id there has two components, for
    the column and the row of a cell.

    Args:
      mines: probability that a cell holds a mine. The default is our choice, since we do not know
        the value of the paper.
      ids: position ids that the task supplies: 'none', 'plain' (`$` 0, then 1, 2, ...) or
        'coupled', which have two components; a random start is left to the encoding,
        `position_coupling(components=2)`.

    Raises:
      SpecError: a probability outside 0 .. 1, or unknown `ids`.

    Example:
      >>> task = Minesweeper(ids='coupled')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=2)
      >>> task.decode(batch['tokens'][0]), batch['positions'][0, :6].tolist()
      ('$..**=22**', [[0, 0], [2, 2], [3, 2], [2, 3], [3, 3], [1, 1]])
    """

    mines: float = 0.2
    ids: Ids = 'none'

    def __post_init__(self):
        check_choice('ids', self.ids, IDS)
        if not 0 <= self.mines <= 1:
            raise SpecError(
                f'mines is a probability, 0 to 1, got {self.mines}; nearest: '
                f'{min(max(self.mines, 0), 1)}'
            )

    @property
    def vocab_size(self) -> int:
        return len(SYMBOLS)

    def width(self, length: Length) -> int:
        return 2 * length_range(length, 1, 'side of the board')[1] ** 2 + 2

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        low, high = length_range(length, 1, 'side of the board')
        columns, rows = rng.integers(low, high, (2, batch), endpoint=True)
        inside = (np.arange(high)[:, None] < rows[:, None, None]) & (
            np.arange(high) < columns[:, None, None]
        )
        mined = (rng.random((batch, high, high)) < self.mines) & inside
        count, cell = columns * rows, np.arange(high * high)
        row_major = cell // columns[:, None] % high * high + cell % columns[:, None]
        flat = lambda board: (
            np.take_along_axis(board.reshape(batch, -1), row_major, axis=1),
            count,
        )
        question, answer = np.where(mined, MINE, FREE), np.where(mined, MINE, neighbours(mined))
        dollar = one_token(BOUNDARY, batch)
        pieces = [dollar, flat(question), one_token(EQUALS, batch), flat(answer), dollar]
        sequence, ends = join_ragged(pieces, self.width(length) + 1, PADDING)
        positions = supplied_ids(
            self.ids, ends, sequence.shape[1], partial(coupled_grid_ids, columns, rows)
        )
        return next_token_batch(sequence, ends, count + 2, positions)

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        return ''.join(SYMBOLS[i] for i in ids)


def neighbours(mined: Bool[np.ndarray, 'B H W']) -> Int[np.ndarray, 'B H W']:
    """The number of mines among the eight cells around each cell.

    Example:
      >>> neighbours(np.array([[[True, False], [False, True]]])).tolist()
      [[[1, 2], [2, 1]]]
    """
    wide = np.pad(mined.astype(np.int64), ((0, 0), (1, 1), (1, 1)))
    height, width = mined.shape[1:]
    around = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    return sum(wide[:, i : i + height, j : j + width] for i, j in around)
