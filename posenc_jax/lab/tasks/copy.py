"""Tasks on strings of symbols: copying, reversing and sorting them, and copying without blanks."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.arithmetic.digits import written
from posenc_jax.lab.tasks.coupling import Ids, coupled_copy_ids, coupled_reverse_ids
from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.protocol.bounds import Ge, Le, Symbols
from posenc_jax.protocol.registry import register

MOST_BLANKS = 1024.0  # for one symbol


@dataclasses.dataclass(frozen=True)
class StringTask(PromptTask):
    """A task `$x=y$` with y as long as x.

    The token ids are the symbols from 0 on, then `=`, `$` (at both ends) and padding. Symbols are
    drawn with replacement. Loss on y and the closing `$`.

    Args:
      symbols: size of the alphabet.
      ids: position ids: 'none', 'plain' (see `PromptTask`) or 'coupled', with start 1.

    Attributes:
      coupled: gives the coupled ids of the sequences `$x=y$` from the lengths of x.
    """

    symbols: Symbols = 10
    ids: Ids = 'none'

    counted = 'number of symbols'
    coupled: ClassVar[Callable[..., Int[np.ndarray, 'B W']] | None] = None

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return (*map(str, range(self.symbols)), '=', '$', '_')

    @property
    def joint(self) -> str:
        return '' if self.symbols <= 10 else ' '

    def longest(self, length: int) -> int:
        return 2 * length + 2

    @abc.abstractmethod
    def answer(
        self, x: Int[np.ndarray, 'B L'], count: Int[np.ndarray, ' B']
    ) -> Int[np.ndarray, 'B L']:
        """y for every row; of x and y, the first `count` symbols of a row are used."""

    def draw(self, rng, batch, low, high):
        count = rng.integers(low, high, batch, endpoint=True)
        x = rng.integers(0, self.symbols, (batch, high))
        ids = self.coupled and functools.partial(self.coupled, count)
        return Drawn(['$', (x, count), '='], [(self.answer(x, count), count), '$'], ids)


@register('copy', kind='task')
@dataclasses.dataclass(frozen=True)
class Copy(StringTask):
    """Copying; the task length counts the symbols to copy. Loss on the copy and the closing `$`.

    Follows Kazemnejad et al., "The Impact of Positional Encoding on Length Generalization in
    Transformers", arXiv 2305.19466 (their multi-symbol copy has 100 symbols and a prompt in words),
    in the layout of Cho et al., arXiv 2405.20671.

    Example:
      >>> task = Copy(symbols=10, ids='coupled')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=4)
      >>> task.decode(batch['tokens'][0]), batch['positions'][0].tolist()
      ('$8652=8652', [0, 2, 3, 4, 5, 1, 2, 3, 4, 5])
    """

    coupled = staticmethod(coupled_copy_ids)

    def answer(self, x, count):
        return x


@register('reverse', kind='task')
@dataclasses.dataclass(frozen=True)
class Reverse(StringTask):
    """Reversal; the task length is the number of symbols. Loss on the reversed string and the
    closing `$`.

    As `copy`, after Kazemnejad et al., arXiv 2305.19466.

    Example:
      >>> task = Reverse(symbols=10)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=5)['tokens'][0])
      '$86523=32568'
    """

    coupled = staticmethod(coupled_reverse_ids)

    def answer(self, x, count):
        return written(x, count)


@register('bucket_sort', kind='task')
@dataclasses.dataclass(frozen=True)
class BucketSort(StringTask):
    """Sorting; the task length is the number of symbols. Loss on the sorted string and the closing
    `$`.

    One of the tasks of Ruoss et al., "Randomized Positional Encodings Boost Length Generalization
    of Transformers", arXiv 2305.16843. There an encoder predicts the whole answer in one pass; here
    the answer is predicted token by token.

    Example:
      >>> task = BucketSort(symbols=5)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=5)['tokens'][0])
      '$43211=11234'
    """

    symbols: Symbols = 5
    ids: Literal['none', 'plain'] = 'none'

    def answer(self, x, count):
        return np.sort(np.where(np.arange(x.shape[1]) < count[:, None], x, self.symbols), axis=1)


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

    symbols: Symbols = 16
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
