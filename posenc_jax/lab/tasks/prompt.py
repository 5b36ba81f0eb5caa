"""Families of tasks whose examples are sequences of named tokens: prompts and their answers, and
tokens with a target each.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from posenc_jax.lab.tasks.coupling import plain_ids
from posenc_jax.lab.tasks.sequences import join_ragged, next_token_batch
from posenc_jax.lab.tasks.task import Batch, Length, Task

# The name of one token, token ids [B, any], or such ids and how many of each row are used.
Piece = str | Int[np.ndarray, 'B _'] | tuple[Int[np.ndarray, 'B _'], Int[np.ndarray, ' B']]


@dataclasses.dataclass(frozen=True)
class TokenTask(Task):
    """A task whose token ids have names.

    Attributes:
      joint: what stands between the names of tokens in readable text.
    """

    joint: ClassVar[str] = ''

    @property
    @abc.abstractmethod
    def names(self) -> Sequence[str]:
        """The text of each token id of the input."""

    @property
    def vocab_size(self) -> int:
        return len(self.names)

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        names = self.names
        return self.joint.join(names[int(i)] for i in ids)


class LabelTask(TokenTask):
    """Tokens, each with a target that belongs to its place."""

    @abc.abstractmethod
    def draw(
        self, rng: np.random.Generator, batch: int, low: int, high: int
    ) -> tuple[Int[np.ndarray, 'B T'], Int[np.ndarray, 'B _'], Shaped[np.ndarray, 'B _'], Batch]:
        """Draws `batch` examples whose task lengths lie in low .. high: tokens, targets, which
        targets bear loss, and further arrays.
        """

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        tokens, targets, scored, further = self.draw(rng, batch, *self.range(length))
        return {
            'tokens': tokens.astype(np.int32),
            'targets': targets.astype(np.int32),
            'loss_mask': scored.astype(np.float32),
            **further,
        }


class Drawn(NamedTuple):
    """A batch of examples as pieces, which are written one after the other.

    Attributes:
      prompt: the pieces in front of the answer.
      answer: the pieces that bear loss.
      ids: function of `width` that returns the position ids of the sequences, for options `ids`
        other than 'none' and 'plain'.
      further: arrays that the batch has beside those of its sequences.
    """

    prompt: list[Piece]
    answer: list[Piece]
    ids: Callable[..., Int[np.ndarray, 'B W *P']] | None = None
    further: Batch = {}


class PromptTask(TokenTask):
    """A prompt and its answer, which a model predicts token by token. Loss on the answer.

    The last token of an answer is a target only. The name `_` is that of padding. A task with an
    option `ids` supplies position ids: 'plain' are 0 for the first token, which is `$`, then 1, 2,
    ..., and 0 for the closing `$` and for padding; others come from `draw`.
    """

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, batch: int, low: int, high: int) -> Drawn:
        """Draws `batch` examples whose task lengths lie in low .. high."""

    @property
    def padding(self) -> int:
        """The token id behind the end of an answer."""
        return self.names.index('_')

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        drawn, width = self.draw(rng, batch, *self.range(length)), self.width(length) + 1
        prompt, answer = ([self._piece(p, batch) for p in side] for side in drawn[:2])
        sequence, ends = join_ragged([*prompt, *answer], width, self.padding)
        match getattr(self, 'ids', 'none'):
            case 'none':
                positions = None
            case 'plain':
                positions = plain_ids(ends - 2, width=width)
            case _:
                positions = drawn.ids(width=width)
        starts = ends - sum(count for _, count in answer)
        out = next_token_batch(sequence, ends, starts, positions) | drawn.further
        return out | {'loss_mask': self.weights(out)}

    def weights(self, batch: Batch) -> Float[np.ndarray, 'B T']:
        """The loss mask, where it is another one than that of all tokens of the answer."""
        return batch['loss_mask']

    def _piece(self, piece, batch):
        if isinstance(piece, str):
            piece = np.full((1, 1), self.names.index(piece))
        return piece if isinstance(piece, tuple) else (piece, np.full(batch, piece.shape[1]))


def ragged(rows: Sequence[Sequence[int]]) -> tuple[Int[np.ndarray, 'B W'], Int[np.ndarray, ' B']]:
    """Rows of ids as a piece."""
    counts = np.array([len(row) for row in rows])
    values = np.zeros((len(rows), counts.max()), np.int32)
    for row, ids in zip(values, rows):
        row[: len(ids)] = ids
    return values, counts
