"""The base class of tasks whose examples are a prompt and an answer, both lists of words."""

import abc
import dataclasses
import functools
from typing import ClassVar

import numpy as np

from posenc_jax.lab.tasks.prompt import Drawn, PromptTask, ragged
from posenc_jax.lab.tasks.sequences import join_ragged
from posenc_jax.lab.tasks.task import Length

Words = list[str]


@dataclasses.dataclass(frozen=True)
class WordTask(PromptTask):
    """A prompt of words and the answer to it. Loss on the answer and on the end, `$`.

    In the layout 'row' the answer follows the prompt, behind `^` if the task is `separated`, and a
    causal model predicts it. In the layout 'source' an encoder reads the prompt, and the decoder
    reads `^` and the answer. A task without a field `layout` has rows.

    The token ids are the words, padding `_`, the end `$` and, where it is used, `^`.

    Attributes:
      separated: whether `^` stands between prompt and answer in the layout 'row'; a task whose
        prompts end with a mark of their own needs none.
    """

    joint = ' '
    separated: ClassVar[bool] = True

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

    @property
    def from_source(self) -> bool:
        """Whether an encoder reads the prompt."""
        return getattr(self, 'layout', 'row') == 'source'

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return (*self.words, '_', '$', *['^'] * (self.separated or self.from_source))

    @property
    def source_size(self) -> int:
        return len(self.words) + 1 if self.from_source else 0

    def longest(self, length: int) -> int:
        prompt, answer = self.widest(length)
        return answer + 1 if self.from_source else prompt + self.separated + answer

    def source_width(self, length: Length) -> int:
        return self.widest(self.range(length)[1])[0] if self.from_source else 0

    def draw(self, rng, batch, low, high):
        pairs = [self.pair(rng, low, high) for _ in range(batch)]
        prompt, answer = (ragged([self._ids(words) for words in side]) for side in zip(*pairs))
        if not self.from_source:
            return Drawn([prompt, *['^'] * self.separated], [answer, '$'])
        source, ends = join_ragged([prompt], self.widest(high)[0], self.padding)
        valid = np.arange(source.shape[1]) < ends[:, None]
        return Drawn(['^'], [answer, '$'], further={'source': source, 'source_valid': valid})

    def _ids(self, words):
        return [self._numbers[word] for word in words]

    @functools.cached_property
    def _numbers(self):
        return {word: number for number, word in enumerate(self.words)}
