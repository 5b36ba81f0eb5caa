"""Minesweeper generator: from the mines of a board to the number of mines around every cell."""

import dataclasses
from functools import partial

import numpy as np
from jaxtyping import Bool, Int

from posenc_jax.lab.tasks.coupling import Ids, coupled_grid_ids
from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.protocol.bounds import Share
from posenc_jax.protocol.registry import register

MINE, FREE = 9, 10


@register('minesweeper', kind='task')
@dataclasses.dataclass(frozen=True)
class Minesweeper(PromptTask):
    """`$*..*=*22*$`: a board of mines and free cells, then the same board with numbers of mines.

    The task length is the length of a side. With a range, both sides are drawn independently; an
    int gives a square. Boards are written cell by cell, row after row. A cell of the answer is a
    mine, or the number of mines among the eight cells around it. Loss on the answer and the closing
    `$`. Follows Cho et al., arXiv 2405.20671; a coupled id there has two components, for
    the column and the row of a cell.

    Args:
      mines: probability that a cell holds a mine. The default is our choice, since we do not know
        the value of the paper.
      ids: position ids that the task supplies: 'none', 'plain' (`$` 0, then 1, 2, ...) or
        'coupled', which have two components; a random start is left to the encoding,
        `position_coupling(components=2)`.

    Example:
      >>> task = Minesweeper(ids='coupled')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=2)
      >>> task.decode(batch['tokens'][0]), batch['positions'][0, :6].tolist()
      ('$..**=22**', [[0, 0], [2, 2], [3, 2], [2, 3], [3, 3], [1, 1]])
    """

    mines: Share = 0.2
    ids: Ids = 'none'

    names = '012345678*.=$_'
    counted = 'side of the board'

    def longest(self, length: int) -> int:
        return 2 * length**2 + 2

    def draw(self, rng, batch, low, high):
        columns, rows = rng.integers(low, high, (2, batch), endpoint=True)
        inside = (np.arange(high)[:, None] < rows[:, None, None]) & (
            np.arange(high) < columns[:, None, None]
        )
        mined = (rng.random((batch, high, high)) < self.mines) & inside
        count, cell = columns * rows, np.arange(high * high)
        row_major = cell // columns[:, None] % high * high + cell % columns[:, None]
        flat = lambda board: np.take_along_axis(board.reshape(batch, -1), row_major, axis=1)
        question, answer = np.where(mined, MINE, FREE), np.where(mined, MINE, neighbours(mined))
        coupled = partial(coupled_grid_ids, columns, rows)
        return Drawn(['$', (flat(question), count), '='], [(flat(answer), count), '$'], coupled)


def neighbours(mined: Bool[np.ndarray, 'B H W']) -> Int[np.ndarray, 'B H W']:
    """The number of mines among the eight cells around each cell."""
    wide = np.pad(mined.astype(np.int64), ((0, 0), (1, 1), (1, 1)))
    height, width = mined.shape[1:]
    around = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    return sum(wide[:, i : i + height, j : j + width] for i, j in around)
