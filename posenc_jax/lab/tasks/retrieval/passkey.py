"""Passkey retrieval in tokens: digits, or several keys of words, hidden in filler and asked for at
the end.
"""

import dataclasses
import functools

import numpy as np

from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.protocol.bounds import NonNegative, Share, Size, Symbols
from posenc_jax.protocol.registry import register

KEY, ASK, FIRST_FILLER = 10, 11, 12


@register('passkey', kind='task')
@dataclasses.dataclass(frozen=True)
class Passkey(PromptTask):
    """`filler^p KEY digits filler^q ASK digits`; the task length is T, the width of the input. Loss
    on the answer.

    The last digit of the answer is a target only, so p + q = T - 2 digits - 1. This is the token
    form, for models trained from scratch, of the passkey test of Mohtashami and Jaggi, "Landmark
    Attention", arXiv 2305.16300.

    Args:
      digits: number of digits of the key.
      fillers: size of the filler alphabet; fillers are drawn uniformly.
      depth: where the key lies, 0 (p = 0) to 1 (q = 0); None draws p uniformly.
      lm_weight: loss weight of filler targets in training (0.1 helps small models); it is 0 in
        evaluation.

    Example:
      >>> task = Passkey(digits=3, depth=0.5)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=12)['tokens'][0])
      'f20 f15 f12 KEY 3 8 5 f12 f14 ASK 3 8'
    """

    digits: Size = 3
    fillers: Symbols = 24
    depth: Share | None = None
    lm_weight: NonNegative = 0.0

    joint = ' '
    counted = 'input length with a passkey of {0.digits} digits'

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return (*'0123456789', 'KEY', 'ASK', *(f'f{i}' for i in range(self.fillers)), '_')

    @property
    def shortest(self) -> int:
        return 2 * self.digits + 1

    def for_evaluation(self) -> 'Passkey':
        return dataclasses.replace(self, lm_weight=0.0)

    def draw(self, rng, batch, low, high):
        room = rng.integers(low, high, batch, endpoint=True) - (2 * self.digits + 1)
        if self.depth is None:
            before = rng.integers(0, room, endpoint=True)
        else:
            before = np.floor(self.depth * room + 0.5).astype(np.int64)
        filler = rng.integers(FIRST_FILLER, FIRST_FILLER + self.fillers, (2, batch, high))
        secret = rng.integers(0, 10, (batch, self.digits))
        hidden = [(filler[0], before), 'KEY', secret, (filler[1], room - before)]
        return Drawn([*hidden, 'ASK'], [secret])

    def weights(self, batch):
        is_filler = (batch['targets'] >= FIRST_FILLER) & (batch['targets'] < self.padding)
        return batch['loss_mask'] + self.lm_weight * is_filler.astype(np.float32)


@register('passkeys', kind='task')
@dataclasses.dataclass(frozen=True)
class Passkeys(PromptTask):
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

    Example:
      >>> task = Passkeys(keys=2, words=2)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=16)['tokens'][0])
      'f1 f0 f4 KEY1 w32 w17 f0 f9 KEY2 w19 w2 ASK1 w32 w17 ASK2 w19'
    """

    keys: Size = 10
    words: Size = 32
    alphabet: Size = 64
    fillers: Symbols = 24

    joint = ' '
    counted = 'input length with {0.keys} passkeys of {0.words} words'

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        marks = (f'{mark}{k}' for mark in ('KEY', 'ASK') for k in range(1, self.keys + 1))
        words = (f'w{i}' for i in range(self.alphabet))
        return (*marks, *words, *(f'f{i}' for i in range(self.fillers)), '_')

    @property
    def shortest(self) -> int:
        return 2 * self.keys * (self.words + 1) - 1

    def draw(self, rng, batch, low, high):
        room = rng.integers(low, high, batch, endpoint=True) + 1 - 2 * self.keys * (self.words + 1)
        depths = np.sort(rng.integers(0, room[:, None], (batch, self.keys), endpoint=True), axis=1)
        gaps = np.diff(depths, axis=1, prepend=0, append=room[:, None])
        words = 2 * self.keys + rng.integers(0, self.alphabet, (batch, self.keys, self.words))
        filler = (
            2 * self.keys
            + self.alphabet
            + rng.integers(0, self.fillers, (self.keys + 1, batch, high + 1))
        )
        hidden, asked = [], []
        for number in range(self.keys):
            secret = words[:, number]
            hidden += [(filler[number], gaps[:, number]), f'KEY{number + 1}', secret]
            asked += [f'ASK{number + 1}', secret]
        return Drawn([*hidden, (filler[self.keys], gaps[:, self.keys])], asked)

    def weights(self, batch):
        return batch['loss_mask'] * (batch['targets'] >= 2 * self.keys)
