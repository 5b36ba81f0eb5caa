"""Several passkeys of random words hidden in filler; the end asks for one after the other."""

import dataclasses

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.task import (
    Batch,
    Length,
    Task,
    join_ragged,
    length_range,
    next_token_batch,
)
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register


@register('passkeys', kind='task')
@dataclasses.dataclass(frozen=True)
class Passkeys(Task):
    """`filler KEY1 words filler KEY2 words ... filler ASK1 words ASK2 words ...`; the task length
    is T, the width of the input. Loss on the words after each ASK.

    The passkeys lie at random depths of the filler and are asked for in the order of the text. The
    last word is a target only, so the filler has T + 1 - 2 keys (words + 1) tokens. This is the
    token form, for models trained from scratch, of the synthetic text on which the gates of
    DuoAttention are trained (Xiao et al., arXiv 2410.10819), with ten passkeys of 32 words.

    Args:
      keys: number of passkeys.
      words: number of words of each passkey.
      alphabet: number of different words; words are drawn uniformly.
      fillers: size of the filler alphabet; fillers are drawn uniformly.

    Raises:
      SpecError: an option below 1.

    Example:
      >>> task = Passkeys(keys=2, words=2)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=16)['tokens'][0])
      'f1 f0 f4 KEY1 w32 w17 f0 f9 KEY2 w19 w2 ASK1 w32 w17 ASK2 w19'
    """

    keys: int = 10
    words: int = 32
    alphabet: int = 64
    fillers: int = 24

    def __post_init__(self):
        for name in ('keys', 'words', 'alphabet', 'fillers'):
            if getattr(self, name) < 1:
                raise SpecError(f'{name} must be at least 1, got {getattr(self, name)}')

    @property
    def vocab_size(self) -> int:
        return 2 * self.keys + self.alphabet + self.fillers + 1

    def _range(self, length):
        shortest = 2 * self.keys * (self.words + 1) - 1
        return length_range(
            length, shortest, f'input length with {self.keys} passkeys of {self.words} words'
        )

    def width(self, length: Length) -> int:
        return self._range(length)[1]

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        low, high = self._range(length)
        room = rng.integers(low, high, batch, endpoint=True) + 1 - 2 * self.keys * (self.words + 1)
        depths = np.sort(rng.integers(0, room[:, None], (batch, self.keys), endpoint=True), axis=1)
        gaps = np.diff(depths, axis=1, prepend=0, append=room[:, None])
        words = 2 * self.keys + rng.integers(0, self.alphabet, (batch, self.keys, self.words))
        filler = (
            2 * self.keys
            + self.alphabet
            + rng.integers(0, self.fillers, (self.keys + 1, batch, high + 1))
        )
        whole = np.full(batch, self.words + 1)
        said = lambda marker, number: (np.insert(words[:, number], 0, marker, axis=1), whole)
        pieces = []
        for number in range(self.keys):
            pieces += [(filler[number], gaps[:, number]), said(number, number)]
        pieces.append((filler[self.keys], gaps[:, self.keys]))
        pieces += [said(self.keys + number, number) for number in range(self.keys)]
        sequence, ends = join_ragged(pieces, high + 1, self.vocab_size - 1)
        out = next_token_batch(sequence, ends, ends - self.keys * (self.words + 1))
        out['loss_mask'] *= out['targets'] >= 2 * self.keys
        return out

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        def text(token):
            if token == self.vocab_size - 1:
                return '_'
            if token < 2 * self.keys:
                return f'{("KEY", "ASK")[token // self.keys]}{token % self.keys + 1}'
            token -= 2 * self.keys
            return f'w{token}' if token < self.alphabet else f'f{token - self.alphabet}'

        return ' '.join(text(int(token)) for token in ids)
