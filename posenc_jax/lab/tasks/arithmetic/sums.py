"""Addition of several numbers: `$017+008+099=421$`, the sum reversed."""

import dataclasses
from functools import partial
from typing import Annotated

import numpy as np

from posenc_jax.lab.tasks.arithmetic.addition import SYMBOLS
from posenc_jax.lab.tasks.arithmetic.digits import random_numbers, written
from posenc_jax.lab.tasks.coupling import Ids, coupled_sum_ids
from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.protocol.bounds import Ge, Le
from posenc_jax.protocol.registry import register


@register('sums', kind='task')
@dataclasses.dataclass(frozen=True)
class Sums(PromptTask):
    """`$a+b+...+z=s$` with k numbers; the task length is the number of digits of a number. Loss on
    the sum and the closing `$`.

    The sum is written least significant digit first. All numbers and the sum are zero-padded to the
    same length: the most digits that a sum of k numbers, each as long as the longest one, can have.
    Follows Cho et al., arXiv 2405.20671.

    Args:
      operands: k, how many numbers are added.
      ids: position ids: 'none', 'plain' (see `PromptTask`) or 'coupled', with start 1.

    Example:
      >>> task = Sums(operands=3, ids='coupled')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=2)
      >>> task.decode(batch['tokens'][0]), batch['positions'][0].tolist()
      ('$038+013+091=241', [0, 4, 3, 2, 1, 4, 3, 2, 1, 4, 3, 2, 1, 2, 3, 4])
    """

    operands: Annotated[int, Ge(2), Le(1000)] = 3
    ids: Ids = 'none'

    names = SYMBOLS
    counted = 'number of digits'

    def sum_digits(self, digits: int) -> int:
        """The most digits that a sum of k numbers with `digits` digits each can have."""
        return len(str(self.operands * (10**digits - 1)))

    def longest(self, length: int) -> int:
        return (self.operands + 1) * (self.sum_digits(length) + 1)

    def draw(self, rng, batch, low, high):
        counts = rng.integers(low, high, (self.operands, batch), endpoint=True)
        wide = self.sum_digits(high)
        numbers = [random_numbers(rng, count, wide) for count in counts]
        total, carry = np.zeros((batch, wide), np.int64), np.zeros(batch, np.int64)
        for column in range(wide):
            carry, total[:, column] = np.divmod(
                sum(number[:, column] for number in numbers) + carry, 10
            )
        padded = np.array([self.sum_digits(n) for n in range(high + 1)])[counts.max(axis=0)]
        signs = ['$', *['+'] * (self.operands - 1)]
        pieces = [
            piece
            for sign, number in zip(signs, numbers)
            for piece in (sign, (written(number, padded), padded))
        ]
        coupled = partial(coupled_sum_ids, padded, self.operands)
        return Drawn([*pieces, '='], [(total, padded), '$'], coupled)
