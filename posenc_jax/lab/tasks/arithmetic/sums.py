"""Addition of several numbers: `$017+008+099=421$`, the sum reversed."""

import dataclasses
from functools import partial

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.arithmetic.addition import BOUNDARY, EQUALS, PADDING, PLUS, SYMBOLS
from posenc_jax.lab.tasks.arithmetic.digits import random_numbers, written
from posenc_jax.lab.tasks.coupling import IDS, Ids, coupled_sum_ids, supplied_ids
from posenc_jax.lab.tasks.task import (
    Batch,
    Length,
    Task,
    join_ragged,
    length_range,
    next_token_batch,
    one_token,
)
from posenc_jax.protocol.errors import SpecError, check_choice
from posenc_jax.protocol.registry import register


@register('sums', kind='task')
@dataclasses.dataclass(frozen=True)
class Sums(Task):
    """`$a+b+...+z=s$` with k numbers; the task length is the number of digits of a number. Loss on
    the sum and the closing `$`.

    The sum is written least significant digit first. All numbers and the sum are zero-padded to the
    same length: the most digits that a sum of k numbers, each as long as the longest one, can have.
    Follows Cho et al., "Position Coupling: Improving Length Generalization of Arithmetic
    Transformers Using Task Structure", arXiv 2405.20671.

    Args:
      operands: k, how many numbers are added.
      ids: position ids that the task supplies: 'none', 'plain' (`$` 0, then 1, 2, ...) or
        'coupled', all with start 1.

    Raises:
      SpecError: fewer than two operands, or unknown `ids`.

    Example:
      >>> task = Sums(operands=3, ids='coupled')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=2)
      >>> task.decode(batch['tokens'][0]), batch['positions'][0].tolist()
      ('$038+013+091=241', [0, 4, 3, 2, 1, 4, 3, 2, 1, 4, 3, 2, 1, 2, 3, 4])
    """

    operands: int = 3
    ids: Ids = 'none'

    def __post_init__(self):
        check_choice('ids', self.ids, IDS)
        if self.operands < 2:
            raise SpecError(f'sums needs at least 2 operands, got {self.operands}')

    @property
    def vocab_size(self) -> int:
        return len(SYMBOLS)

    def sum_digits(self, digits: int) -> int:
        """The most digits that a sum of k numbers with `digits` digits each can have.

        Example:
          >>> Sums(operands=3).sum_digits(2)
          3
        """
        return len(str(self.operands * (10**digits - 1)))

    def width(self, length: Length) -> int:
        high = length_range(length, 1, 'number of digits')[1]
        return (self.operands + 1) * (self.sum_digits(high) + 1)

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        low, high = length_range(length, 1, 'number of digits')
        counts = rng.integers(low, high, (self.operands, batch), endpoint=True)
        wide = self.sum_digits(high)
        numbers = [random_numbers(rng, count, wide) for count in counts]
        total, carry = np.zeros((batch, wide), np.int64), np.zeros(batch, np.int64)
        for column in range(wide):
            carry, total[:, column] = np.divmod(
                sum(number[:, column] for number in numbers) + carry, 10
            )
        padded = np.array([self.sum_digits(n) for n in range(high + 1)])[counts.max(axis=0)]
        plus, equals, dollar = (one_token(token, batch) for token in (PLUS, EQUALS, BOUNDARY))
        signs = [dollar, *[plus] * (self.operands - 1)]
        pieces = [
            piece
            for sign, number in zip(signs, numbers)
            for piece in (sign, (written(number, padded), padded))
        ]
        sequence, ends = join_ragged(
            [*pieces, equals, (total, padded), dollar], self.width(length) + 1, PADDING
        )
        positions = supplied_ids(
            self.ids, ends, sequence.shape[1], partial(coupled_sum_ids, padded, self.operands)
        )
        return next_token_batch(sequence, ends, self.operands * (padded + 1) + 1, positions)

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        return ''.join(SYMBOLS[i] for i in ids)
