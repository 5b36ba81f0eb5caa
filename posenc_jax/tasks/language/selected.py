"""Training rows that are pieces of longer texts, at positions the method gives them; evaluation as
`Language`.
"""

import abc
import functools
import sys

import numpy as np
from jaxtyping import Int

from posenc_jax.tasks.language.language import Language
from posenc_jax.tasks.task import Batch, Length, batch_rng, shard_rows


class SelectedText(Language):
    """A language task whose training rows of N tokens are chosen from texts of `source(N)` tokens;
    to be inherited from.

    Texts are random crops of the stream of all documents. The batch has the positions of the chosen
    tokens, and as targets the tokens that follow each of them in the text: at the end of a piece
    never the first token of the next piece. All targets are scored. Validation and test have whole
    windows at plain positions.
    """

    supplies_positions = True

    @abc.abstractmethod
    def source(self, length: int) -> int:
        """Tokens of the text that a row of `length` is chosen from.

        Raises:
          ValueError: nothing can be chosen for rows of this length.
        """

    @abc.abstractmethod
    def choose(
        self, rng: np.random.Generator, batch: int, length: int
    ) -> tuple[Int[np.ndarray, 'B N'], Int[np.ndarray, 'B N']]:
        """For each row which tokens of its text are taken, and their positions."""

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
