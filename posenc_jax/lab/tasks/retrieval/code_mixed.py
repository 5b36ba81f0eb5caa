"""Code-mixed text of two alphabets, with questions about the points where the language switches."""

import dataclasses
import functools
from typing import Literal

import numpy as np

from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.protocol.bounds import Size, Symbols
from posenc_jax.protocol.registry import register


@register('code_mixed', kind='task')
@dataclasses.dataclass(frozen=True)
class CodeMixed(PromptTask):
    """`text k1 y1 k2 y2 ...`: y is the first letter after the k-th last switching point.

    Loss on every y. The text consists of random letters, from two alphabets in turn. Its switching
    points lie anywhere, so that no fixed distance leads to them, and each is asked for once, in
    random order. The task length is the number of letters of the text. This is a small language of
    our own to test encodings of code-mixed text, for which CONFLATOR (Ali et al., arXiv 2309.05270)
    uses Hinglish tweets: the answer depends on tokens next to switching points.

    Args:
      letters: number of letters of each alphabet.
      switches: number of switching points of a text.
      ids: 'none', or 'switches': positions [B, T, 3], (position, offset since the last switching
        point, switches so far), as `conflator` and `hirope` take them. Questions and answers have
        the language of the last letter.

    Example:
      >>> task = CodeMixed(switches=2, ids='switches')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=6)
      >>> task.decode(batch['tokens'][0]), batch['positions'][0, :6].T[1:].tolist()
      ('b4 b7 a5 b5 b4 b4 1? b5 2?', [[0, 1, 0, 0, 1, 2], [0, 0, 1, 2, 2, 2]])
    """

    letters: Symbols = 8
    switches: Size = 6
    ids: Literal['none', 'switches'] = 'none'

    joint = ' '
    counted = 'length of a text with {0.switches} switching points'

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        letters = (f'{language}{i}' for language in 'ab' for i in range(self.letters))
        return (*letters, *(f'{k}?' for k in range(1, self.switches + 1)), '_')

    @property
    def shortest(self) -> int:
        return self.switches + 1

    def longest(self, length: int) -> int:
        return length + 2 * self.switches - 1

    def draw(self, rng, batch, low, high):
        total = rng.integers(low, high, batch, endpoint=True)
        column, width = np.arange(high), self.longest(high) + 1
        order = np.where((column > 0) & (column < total[:, None]), rng.random((batch, high)), 2.0)
        places = np.sort(np.argsort(order, axis=1)[:, : self.switches], axis=1)
        switch = np.zeros((batch, width), np.int64)
        np.put_along_axis(switch, places, 1, axis=1)
        count = np.cumsum(switch, axis=1)
        language = (rng.integers(0, 2, (batch, 1)) + count[:, :high]) % 2
        text = rng.integers(0, self.letters, (batch, high)) + self.letters * language

        asked = rng.permuted(np.tile(np.arange(1, self.switches + 1), (batch, 1)), axis=1)
        answers = np.take_along_axis(
            text, np.take_along_axis(places, self.switches - asked, axis=1), axis=1
        )
        questions = 2 * self.letters + asked - 1
        pairs = np.stack([questions, answers], axis=-1).reshape(batch, -1)
        return Drawn([(text, total)], [pairs], functools.partial(_positions, switch, count))

    def weights(self, batch):
        return batch['loss_mask'] * (batch['tokens'] >= 2 * self.letters)


def _positions(switch, count, width):
    """(position, offset since the last switching point, switches so far) of every token."""
    index = np.broadcast_to(np.arange(width), switch.shape)
    offset = index - np.maximum.accumulate(index * switch, axis=1)
    return np.stack([index, offset, count], axis=-1)
