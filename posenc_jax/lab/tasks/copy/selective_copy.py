"""Selective copying: the symbols of a text without its blanks, `3..1.7=317$`."""

import dataclasses
import functools
from typing import Annotated

import numpy as np

from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.protocol.bounds import Ge, Le, Size
from posenc_jax.protocol.registry import register

MOST_BLANKS = 1024.0  # for one symbol


@register('selective_copy', kind='task')
@dataclasses.dataclass(frozen=True)
class SelectiveCopy(PromptTask):
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

    Reference: Golovneva, Wang, Weston, Sukhbaatar, "Contextual Position Encoding", arXiv
    2405.18719; the task is that of Gu, Dao, "Mamba", arXiv 2312.00752.

    Example:
      >>> task = SelectiveCopy(symbols=10)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=4)['tokens'][0])
      '86..5.2.=8652'
    """

    symbols: Size = 16
    blanks: Annotated[float, Ge(0), Le(MOST_BLANKS)] = 1.0

    counted = 'number of symbols'

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return (*map(str, range(self.symbols)), '.', '=', '$', '_')

    @property
    def joint(self) -> str:
        return '' if self.symbols <= 10 else ' '

    def _blanks(self, count):
        return np.floor(self.blanks * count + 0.5).astype(np.int64)

    def longest(self, length: int) -> int:
        return 2 * length + int(self._blanks(length)) + 1

    def draw(self, rng, batch, low, high):
        count = rng.integers(low, high, batch, endpoint=True)
        whole = count + self._blanks(count)
        x = rng.integers(0, self.symbols, (batch, high))
        # The places of the symbols are those of the least of random numbers, one for each place.
        column = np.arange(high + int(self._blanks(high)))
        drawn = np.where(column < whole[:, None], rng.random((batch, len(column))), np.inf)
        chosen = np.argsort(np.argsort(drawn, axis=1), axis=1) < count[:, None]
        rank = np.minimum(np.maximum(np.cumsum(chosen, axis=1) - 1, 0), high - 1)
        text = np.where(chosen, np.take_along_axis(x, rank, axis=1), self.names.index('.'))
        return Drawn([(text, whole), '='], [(x, count), '$'])
