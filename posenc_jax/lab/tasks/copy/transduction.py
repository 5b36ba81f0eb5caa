"""The base class of tasks `$x=y$` whose answer y is a string made from the symbols of x."""

import abc
import dataclasses
from functools import partial

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.coupling import IDS, Ids, supplied_ids
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


@dataclasses.dataclass(frozen=True)
class Transduction(Task):
    """A task `$x=y$` with y as long as x.

    The token ids are the symbols from 0 on, then `=`, `$` (at both ends) and padding.

    Args:
      symbols: size of the alphabet; symbols are drawn with replacement.
      ids: position ids that the task supplies: 'none', 'plain' (`$` 0, then 1, 2, ...) or
        'coupled'.
    """

    symbols: int = 10
    ids: Ids = 'none'

    def __post_init__(self):
        if self.symbols < 1:
            raise SpecError(f'symbols must be at least 1, got {self.symbols}')
        check_choice('ids', self.ids, IDS)

    @property
    def vocab_size(self) -> int:
        return self.symbols + 3

    def width(self, length: Length) -> int:
        return 2 * length_range(length, 1, 'number of symbols')[1] + 2

    @abc.abstractmethod
    def answer(
        self, x: Int[np.ndarray, 'B L'], count: Int[np.ndarray, ' B']
    ) -> Int[np.ndarray, 'B L']:
        """y for every row; of x and y, the first `count` symbols of a row are used."""

    @abc.abstractmethod
    def coupled_ids(self, count: Int[np.ndarray, ' B'], width: int) -> Int[np.ndarray, 'B W']:
        """Coupled ids of the whole sequence `$x=y$`, padded to `width`."""

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        low, high = length_range(length, 1, 'number of symbols')
        count = rng.integers(low, high, batch, endpoint=True)
        x = rng.integers(0, self.symbols, (batch, high))
        equals, boundary, padding = np.arange(self.symbols, self.symbols + 3)
        dollar = one_token(boundary, batch)
        pieces = [
            dollar,
            (x, count),
            one_token(equals, batch),
            (self.answer(x, count), count),
            dollar,
        ]
        sequence, ends = join_ragged(pieces, self.width(length) + 1, padding)
        positions = supplied_ids(
            self.ids, ends, sequence.shape[1], partial(self.coupled_ids, count)
        )
        return next_token_batch(sequence, ends, count + 2, positions)

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        marks = {self.symbols: '=', self.symbols + 1: '$', self.symbols + 2: '_'}
        return ('' if self.symbols <= 10 else ' ').join(marks.get(int(i), str(int(i))) for i in ids)
