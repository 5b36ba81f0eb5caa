"""Counting: how often a variable of a program was incremented since it was set to 0."""

import dataclasses
import string

import numpy as np
from jaxtyping import Int

from posenc_jax.core.registry import SpecError, register
from posenc_jax.tasks.task import Batch, Length, Task, join_ragged, length_range, next_token_batch

MOST = 10  # the largest value of a variable
NAMES = string.ascii_lowercase
SET, INCR, PASS, PRINT = range(MOST + 1, MOST + 5)  # behind the numbers 0 .. MOST
FIRST = PRINT + 1  # the first variable


@register('counting', kind='task')
@dataclasses.dataclass(frozen=True)
class Counting(Task):
    """`set a 0 incr a pass incr a print a 2`; the task length is the number of steps before
    `print`. Loss on the value alone.

    A program begins with `set v 0` for every variable v. Each other step is `pass` with probability
    `passes`, else an operation on a random variable: `set v 0` with probability `sets`, and `incr
    v` otherwise, which adds 1. A variable that is 10 is set to 0 and not incremented, so values are
    0 to 10. The last step prints a random variable. CoPE trains on programs of about 512 tokens
    with 1, 3 and 5 variables; its longer programs have more `pass`.

    Differs from the paper: the probabilities are ours, and so is that a full variable is set to 0.

    Args:
      variables: number of variables.
      passes: probability of `pass`.
      sets: probability that an operation is `set`.

    Raises:
      SpecError: a number of variables outside 1 .. 26, or a probability outside 0 .. 1.

    Reference: Golovneva, Wang, Weston, Sukhbaatar, "Contextual Position Encoding", arXiv
    2405.18719.

    Example:
      >>> task = Counting(variables=2)
      >>> task.decode(task.sample(np.random.default_rng(1), batch=1, length=8)['tokens'][0])
      'set a 0 set b 0 incr b incr b pass incr a incr b pass print a 1 _ _ _ _ _ _ _'
    """

    variables: int = 1
    passes: float = 0.4
    sets: float = 0.05

    def __post_init__(self):
        if not 1 <= self.variables <= len(NAMES):
            nearest = min(max(self.variables, 1), len(NAMES))
            raise SpecError(
                f'variables are 1 to {len(NAMES)}, got {self.variables}; nearest: {nearest}'
            )
        for name in ('passes', 'sets'):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise SpecError(
                    f'{name} is a probability, 0 to 1, got {value}; nearest: '
                    f'{min(max(value, 0), 1)}'
                )

    @property
    def vocab_size(self) -> int:
        return FIRST + self.variables + 1

    def _range(self, length):
        what = f'number of steps of a program with {self.variables} variables'
        return length_range(length, self.variables, what)

    def width(self, length: Length) -> int:
        return 3 * self._range(length)[1] + 2

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        low, high = self._range(length)
        steps = rng.integers(low, high, batch, endpoint=True)
        variable = rng.integers(0, self.variables, (batch, high + 1))  # the last one is printed
        passed, is_set = rng.random((2, batch, high)) < [[[self.passes]], [[self.sets]]]
        values, row = np.zeros((batch, self.variables), np.int64), np.arange(batch)
        pieces = []
        for number in range(high):
            first = number < self.variables
            own = np.full(batch, number) if first else variable[:, number]
            sets = first | is_set[:, number] | (values[row, own] == MOST)
            idle = ~np.bool_(first) & passed[:, number] | (number >= steps)
            values[row, own] = np.where(
                idle, values[row, own], np.where(sets, 0, values[row, own] + 1)
            )
            tokens = np.stack([np.where(sets, SET, INCR), FIRST + own, np.zeros_like(own)], axis=1)
            tokens[idle, 0] = PASS
            words = np.where(idle, 1, np.where(sets, 3, 2))
            pieces.append((tokens, np.where(number < steps, words, 0)))
        asked = variable[:, -1]
        end = np.stack([np.full(batch, PRINT), FIRST + asked, values[row, asked]], axis=1)
        padding = self.vocab_size - 1
        sequence, ends = join_ragged(
            [*pieces, (end, np.full(batch, 3))], self.width(length) + 1, padding
        )
        return next_token_batch(sequence, ends, ends - 1)

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        words = [*map(str, range(MOST + 1)), 'set', 'incr', 'pass', 'print']
        return ' '.join([*words, *NAMES[: self.variables], '_'][int(i)] for i in ids)
