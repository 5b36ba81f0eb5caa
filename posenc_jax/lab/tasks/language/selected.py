"""The base class of language tasks whose training rows are pieces of longer texts, with positions
that the method assigns.
"""

import abc
import functools

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.language.language import Language
from posenc_jax.lab.tasks.task import Length, Reader, rows_of


class SelectedText(Language):
    """A language task whose training rows of N tokens are chosen from texts of `source(N)` tokens.

    Texts are random crops of the stream of all documents. A batch has the positions of the chosen
    tokens. The target of a token is the one that follows it in the text, so the target at the end
    of a piece is not the first token of the next piece. All targets are scored. Validation and test
    data are whole windows at plain positions.
    """

    supplies_positions = True

    @abc.abstractmethod
    def source(self, length: int) -> int:
        """The number of tokens of the text from which a row of `length` tokens is chosen.

        Raises:
          ValueError: nothing can be chosen for rows of this length.
        """

    @abc.abstractmethod
    def choose(
        self, rng: np.random.Generator, batch: int, length: int
    ) -> tuple[Int[np.ndarray, 'B N'], Int[np.ndarray, 'B N']]:
        """For each row the indices in its text of the chosen tokens, and their positions."""

    def width(self, length: Length) -> int:
        length = super().width(length)
        self.source(length)
        return length

    def reader(self, split: str, length: Length) -> Reader:
        length = self.width(length)
        stream = np.concatenate(self._documents(split, self.source(length)))
        return functools.partial(self._rows, stream, length)

    def _rows(self, stream, length, rng, batch_size, rows):
        offsets = rng.integers(0, len(stream) - self.source(length), batch_size)
        kept, positions = self.choose(rng, batch_size, length)
        at = offsets[:, None] + kept
        batch = {
            'tokens': stream[at].astype(np.int32),
            'targets': stream[at + 1].astype(np.int32),
            'loss_mask': np.ones(at.shape, np.float32),
            'positions': positions.astype(np.int32),
        }
        return rows_of(batch, rows)
