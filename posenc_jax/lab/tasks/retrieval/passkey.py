"""Passkey retrieval in tokens: a few digits hidden in filler, asked for at the end."""

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
    one_token,
)
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

KEY, ASK, FIRST_FILLER = 10, 11, 12


@register('passkey', kind='task')
@dataclasses.dataclass(frozen=True)
class Passkey(Task):
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

    Raises:
      SpecError: an option out of its range.

    Example:
      >>> task = Passkey(digits=3, depth=0.5)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=12)['tokens'][0])
      'f20 f15 f12 KEY 3 8 5 f12 f14 ASK 3 8'
    """

    digits: int = 3
    fillers: int = 24
    depth: float | None = None
    lm_weight: float = 0.0

    def __post_init__(self):
        for name in ('digits', 'fillers'):
            if getattr(self, name) < 1:
                raise SpecError(f'{name} must be at least 1, got {getattr(self, name)}')
        if self.depth is not None and not 0 <= self.depth <= 1:
            nearest = min(max(self.depth, 0), 1)
            raise SpecError(
                f'depth must be None or between 0 and 1, got {self.depth}; nearest: {nearest}'
            )
        if not 0 <= self.lm_weight < float('inf'):
            raise SpecError(
                f'lm_weight must be a finite number of at least 0, got {self.lm_weight}'
            )

    @property
    def vocab_size(self) -> int:
        return FIRST_FILLER + self.fillers + 1

    def _range(self, length):
        return length_range(
            length, 2 * self.digits + 1, f'input length with a passkey of {self.digits} digits'
        )

    def width(self, length: Length) -> int:
        return self._range(length)[1]

    def for_evaluation(self) -> 'Passkey':
        return dataclasses.replace(self, lm_weight=0.0)

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        low, high = self._range(length)
        room = rng.integers(low, high, batch, endpoint=True) - (2 * self.digits + 1)
        if self.depth is None:
            before = rng.integers(0, room, endpoint=True)
        else:
            before = np.floor(self.depth * room + 0.5).astype(np.int64)
        filler = rng.integers(FIRST_FILLER, FIRST_FILLER + self.fillers, (2, batch, high))
        key = rng.integers(0, 10, (batch, self.digits))
        padding = self.vocab_size - 1
        marked, asked = one_token(KEY, batch), one_token(ASK, batch)
        secret = (key, np.full(batch, self.digits))
        pieces = [(filler[0], before), marked, secret, (filler[1], room - before), asked, secret]
        sequence, ends = join_ragged(pieces, high + 1, padding)
        out = next_token_batch(sequence, ends, ends - self.digits)
        is_filler = (out['targets'] >= FIRST_FILLER) & (out['targets'] < padding)
        out['loss_mask'] += self.lm_weight * is_filler.astype(np.float32)
        return out

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        def text(token):
            if token == self.vocab_size - 1:
                return '_'
            return {KEY: 'KEY', ASK: 'ASK'}.get(
                token, str(token) if token < 10 else f'f{token - FIRST_FILLER}'
            )

        return ' '.join(text(int(token)) for token in ids)
