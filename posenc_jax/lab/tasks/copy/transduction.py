"""The base class of tasks `$x=y$` whose answer y is a string made from the symbols of x."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.coupling import Ids
from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.protocol.bounds import Size


@dataclasses.dataclass(frozen=True)
class Transduction(PromptTask):
    """A task `$x=y$` with y as long as x.

    The token ids are the symbols from 0 on, then `=`, `$` (at both ends) and padding.

    Args:
      symbols: size of the alphabet; symbols are drawn with replacement.
      ids: position ids that the task supplies: 'none', 'plain' (`$` 0, then 1, 2, ...) or
        'coupled'.

    Attributes:
      coupled: gives the coupled ids of the sequences `$x=y$` from the lengths of x.
    """

    symbols: Size = 10
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
