"""The base class of tasks whose examples are a prompt and an answer, both lists of words."""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int

from posenc_jax.lab.tasks.task import Batch, Length, Task, length_range, next_token_batch

Words = list[str]
LAYOUTS = ('row', 'source')


@dataclasses.dataclass(frozen=True)
class WordTask(Task):
    """A prompt of words and the answer to it. Loss on the answer and on the end, `$`.

    In the layout 'row' the answer follows the prompt, behind `^` if the task is `separated`, and a
    causal model predicts it. In the layout 'source' an encoder reads the prompt, and the decoder
    reads `^` and the answer. A task without a field `layout` has rows.

    The token ids are the words, padding `_`, the end `$` and, where it is used, `^`.

    Attributes:
      separated: whether `^` stands between prompt and answer in the layout 'row'; a task whose
        prompts end with a mark of their own needs none.
      shortest: the least task length.
      counted: what the task length counts, for messages.
    """

    separated: ClassVar[bool] = True
    shortest: ClassVar[int] = 1
    counted: ClassVar[str]

    @property
    @abc.abstractmethod
    def words(self) -> tuple[str, ...]:
        """All words of prompts and answers, each once."""

    @abc.abstractmethod
    def pair(self, rng: np.random.Generator, low: int, high: int) -> tuple[Words, Words]:
        """The prompt and the answer of one example, whose length is in low .. high."""

    @abc.abstractmethod
    def widest(self, length: int) -> tuple[int, int]:
        """How many words a prompt and an answer of at most this length can have."""

    def range(self, length: Length) -> tuple[int, int]:
        """A task length as an inclusive range.

        Raises:
          ValueError: the task has no such length.
        """
        return length_range(length, self.shortest, self.counted)

    @property
    def from_source(self) -> bool:
        """Whether an encoder reads the prompt."""
        return getattr(self, 'layout', 'row') == 'source'

    @property
    def vocab_size(self) -> int:
        return len(self.words) + 2 + (self.separated or self.from_source)

    @property
    def source_size(self) -> int:
        return len(self.words) + 1 if self.from_source else 0

    def width(self, length: Length) -> int:
        prompt, answer = self.widest(self.range(length)[1])
        return answer + 1 if self.from_source else prompt + self.separated + answer

    def source_width(self, length: Length) -> int:
        return self.widest(self.range(length)[1])[0] if self.from_source else 0

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        low, high = self.range(length)
        pairs = [self.pair(rng, low, high) for _ in range(batch)]
        prompts, answers = ([self._ids(side) for side in sides] for sides in zip(*pairs))
        padding, end, begin = range(len(self.words), len(self.words) + 3)
        before = [[begin]] * batch if self.separated or self.from_source else [[]] * batch
        if not self.from_source:
            before = [prompt + mark for prompt, mark in zip(prompts, before)]
        rows = [front + answer + [end] for front, answer in zip(before, answers)]
        sequence, _ = padded(rows, self.width(length) + 1, padding)
        ends, starts = (np.array([*map(len, lists)]) for lists in (rows, before))
        out = next_token_batch(sequence, ends, starts)
        if self.from_source:
            out['source'], out['source_valid'] = padded(prompts, self.source_width(length), padding)
        return out

    def _ids(self, words):
        return [self._numbers[word] for word in words]

    @functools.cached_property
    def _numbers(self):
        return {word: number for number, word in enumerate(self.words)}

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        names = [*self.words, '_', '$', '^']
        return ' '.join(names[int(i)] for i in ids)


def padded(
    rows: Sequence[Sequence[int]], width: int, fill: int
) -> tuple[Int[np.ndarray, 'B W'], Bool[np.ndarray, 'B W']]:
    """Rows of ids filled up on the right, and where they are not filled.

    Example:
      >>> [array.tolist() for array in padded([[7], [8, 9]], 2, 0)]
      [[[7, 0], [8, 9]], [[True, False], [True, True]]]
    """
    out = np.full((len(rows), width), fill, np.int32)
    for row, ids in zip(out, rows):
        row[: len(ids)] = ids
    return out, np.arange(width) < np.array([[len(ids)] for ids in rows])
