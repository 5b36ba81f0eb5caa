"""Passkey retrieval in tokens: a few digits hidden in filler, asked for at the end."""

import dataclasses
import functools

import numpy as np

from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.lab.tasks.task import Batch, Length
from posenc_jax.protocol.bounds import NonNegative, Share, Size
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
    fillers: Size = 24
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

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        out = super().sample(rng, batch, length)
        is_filler = (out['targets'] >= FIRST_FILLER) & (out['targets'] < self.padding)
        out['loss_mask'] += self.lm_weight * is_filler.astype(np.float32)
        return out
