"""Selective copying: the symbols of a text without its blanks, `3..1.7=317$`."""

import dataclasses

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.task import (
    Batch,
    Length,
    Task,
    join_ragged,
    length_range,
    next_token_batch,
    one_token,
)
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

MOST_BLANKS = 1024.0  # for one symbol


@register('selective_copy', kind='task')
@dataclasses.dataclass(frozen=True)
class SelectiveCopy(Task):
    """`N symbols and B blanks in random order = the symbols $`; the task length is N. Loss on the
    symbols and the closing `$`.

    B is `blanks` times N, rounded, and all orders of symbols and blanks are equally likely. The
    token ids are the symbols from 0 on, then the blank `.`, `=`, `$` and padding. CoPE trains on
    256 symbols and 256 blanks, and tests with 128 blanks (dense, `blanks=0.5`) and 512 (sparse,
    `blanks=2.0`).

    Differs from the paper: `$` ends the answer, since the number of symbols may vary.

    Args:
      symbols: size of the alphabet; symbols are drawn with replacement.
      blanks: blanks for one symbol.

    Raises:
      SpecError: no symbols, or a number of blanks outside 0 .. 1024.

    Reference: Golovneva, Wang, Weston, Sukhbaatar, "Contextual Position Encoding", arXiv
    2405.18719; the task is that of Gu, Dao, "Mamba", arXiv 2312.00752.

    Example:
      >>> task = SelectiveCopy(symbols=10)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=4)['tokens'][0])
      '86..5.2.=8652'
    """

    symbols: int = 16
    blanks: float = 1.0

    def __post_init__(self):
        if self.symbols < 1:
            raise SpecError(f'symbols must be at least 1, got {self.symbols}')
        if not 0 <= self.blanks <= MOST_BLANKS:
            nearest = min(max(self.blanks, 0.0), MOST_BLANKS)
            raise SpecError(
                f'blanks, for one symbol, are 0 to {MOST_BLANKS:g}, got {self.blanks}; nearest: '
                f'{nearest:g}'
            )

    @property
    def vocab_size(self) -> int:
        return self.symbols + 4

    def _blanks(self, count):
        return np.floor(self.blanks * count + 0.5).astype(np.int64)

    def width(self, length: Length) -> int:
        high = length_range(length, 1, 'number of symbols')[1]
        return 2 * high + int(self._blanks(high)) + 1

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        low, high = length_range(length, 1, 'number of symbols')
        count = rng.integers(low, high, batch, endpoint=True)
        whole = count + self._blanks(count)
        x = rng.integers(0, self.symbols, (batch, high))
        blank, equals, dollar, padding = range(self.symbols, self.symbols + 4)
        # The places of the symbols are those of the least of random numbers, one for each place.
        column = np.arange(high + int(self._blanks(high)))
        drawn = np.where(column < whole[:, None], rng.random((batch, len(column))), np.inf)
        chosen = np.argsort(np.argsort(drawn, axis=1), axis=1) < count[:, None]
        rank = np.maximum(np.cumsum(chosen, axis=1) - 1, 0)
        text = np.where(chosen, np.take_along_axis(x, np.minimum(rank, high - 1), axis=1), blank)
        pieces = [(text, whole), one_token(equals, batch), (x, count), one_token(dollar, batch)]
        sequence, ends = join_ragged(pieces, self.width(length) + 1, padding)
        return next_token_batch(sequence, ends, whole + 1)

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        marks = dict(zip(range(self.symbols, self.symbols + 4), '.=$_'))
        return ('' if self.symbols <= 10 else ' ').join(marks.get(int(i), str(int(i))) for i in ids)
