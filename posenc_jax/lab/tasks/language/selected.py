"""The base class of language tasks whose training rows are pieces of longer texts, with positions
that the method assigns.
"""

import abc
import functools
import sys

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.language.language import Language
from posenc_jax.lab.tasks.task import Batch, Length, batch_rng, shard_rows


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

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        length = self.width(length)
        stream = np.concatenate(self._documents('train', self.source(length)))
        return self._rows(stream, rng, batch, length)

    def _rows(self, stream, rng, batch, length):
        offsets = rng.integers(0, len(stream) - self.source(length), batch)
        kept, positions = self.choose(rng, batch, length)
        at = offsets[:, None] + kept
        return {
            'tokens': stream[at].astype(np.int32),
            'targets': stream[at + 1].astype(np.int32),
            'loss_mask': np.ones(at.shape, np.float32),
            'positions': positions.astype(np.int32),
        }

    def dataset(
        self,
        *,
        length: Length,
        batch_size: int,
        seed: int,
        split: str = 'train',
        shard: tuple[int, int] = (0, 1),
    ):
        if split != 'train':
            return super().dataset(
                length=length, batch_size=batch_size, seed=seed, split=split, shard=shard
            )
        import grain

        length = self.width(length)
        stream = np.concatenate(self._documents(split, self.source(length)))
        batch_rng(seed, split, 0)
        rows = shard_rows(batch_size, shard)
        batches = grain.MapDataset.range(sys.maxsize // batch_size)
        return batches.map(
            functools.partial(_numbered_batch, self, stream, batch_size, rows, length, seed)
        )


def _numbered_batch(task, stream, batch_size, rows, length, seed, index):
    batch = task._rows(stream, batch_rng(seed, 'train', index), batch_size, length)
    return {name: array[rows] for name, array in batch.items()}
