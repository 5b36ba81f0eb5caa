"""Counting: how often a variable of a program was incremented since it was set to 0."""

import dataclasses
import functools
import string
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool

from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.protocol.bounds import Ge, Le, Share
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

MOST = 10  # the largest value of a variable
NAMES = string.ascii_lowercase
SET, INCR, PASS, PRINT = range(MOST + 1, MOST + 5)  # behind the numbers 0 .. MOST
FIRST = PRINT + 1  # the first variable


@register('counting', kind='task')
@dataclasses.dataclass(frozen=True)
class Counting(PromptTask):
    """`set a 0 incr a pass incr a print a 2`; the task length is the number of steps before
    `print`. Loss on the value alone.

    A program begins with `set v 0` for every variable v. Each other step is `pass` with probability
    `passes`, else an operation on a random variable: `set v 0` with probability `sets`, and `incr
    v` otherwise, which adds 1. A variable that is 10 is not incremented but set to 0 (or see
    `full`), so values are 0 to 10. The last step prints a random variable. CoPE trains on programs
    of about 512 tokens with 1, 3 and 5 variables; its longer programs have more `pass`.

    Differs from the released code: by default the probabilities are ours, and so is that a full
    variable is set to 0; a program begins with `set` for every variable. The code draws `set`,
    `pass` and `incr` with weights 1 : 50 : 7, so that 50 / 58 of the steps pass and 1 / 8 of the
    others set, and it draws again where the variable is full: `counting(variables=3,
    passes=0.862069, sets=0.125, full='redraw')`.

    Args:
      variables: number of variables.
      passes: probability of `pass`.
      sets: probability that an operation is `set`.
      full: what is written instead of `incr v` for a variable that is 10: 'set' for `set v 0`, or
        'redraw' for another draw of the step, with `pass` and all variables, until it is possible.

    Raises:
      SpecError: 'redraw' where nothing but `incr` can be drawn.

    Reference: Golovneva, Wang, Weston, Sukhbaatar, "Contextual Position Encoding", arXiv
    2405.18719.

    Example:
      >>> task = Counting(variables=2)
      >>> task.decode(task.sample(np.random.default_rng(1), batch=1, length=8)['tokens'][0])
      'set a 0 set b 0 incr b incr b pass incr a incr b pass print a 1 _ _ _ _ _ _ _'
    """

    variables: Annotated[int, Ge(1), Le(len(NAMES))] = 1
    passes: Share = 0.4
    sets: Share = 0.05
    full: Literal['set', 'redraw'] = 'set'

    joint = ' '
    counted = 'number of steps of a program with {0.variables} variables'

    def __post_init__(self):
        if self.full == 'redraw' and self.passes == self.sets == 0:
            raise SpecError(
                "counting(full='redraw') draws nothing but incr with passes=0 and sets=0, and "
                "variables that are full have no other step; use full='set' or sets=0.125"
            )

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        words = 'set', 'incr', 'pass', 'print'
        return (*map(str, range(MOST + 1)), *words, *NAMES[: self.variables], '_')

    @property
    def shortest(self) -> int:
        return self.variables

    def longest(self, length: int) -> int:
        return 3 * length + 2

    def draw(self, rng, batch, low, high):
        steps = rng.integers(low, high, batch, endpoint=True)
        variable = rng.integers(0, self.variables, (batch, high + 1))  # the last one is printed
        passed, is_set = rng.random((2, batch, high)) < [[[self.passes]], [[self.sets]]]
        values, row = np.zeros((batch, self.variables), np.int64), np.arange(batch)
        pieces = []
        for number in range(high):
            first = number < self.variables
            own = np.full(batch, number) if first else variable[:, number]
            sets, idle = first | is_set[:, number], ~np.bool_(first) & passed[:, number]
            full = ~sets & ~idle & (values[row, own] == MOST)
            if self.full == 'set':
                sets = sets | full
            elif full.any():
                again = self._possible(rng, values[full] < MOST)
                own[full], sets[full], idle[full] = again
            idle = idle | (number >= steps)
            values[row, own] = np.where(
                idle, values[row, own], np.where(sets, 0, values[row, own] + 1)
            )
            tokens = np.stack([np.where(sets, SET, INCR), FIRST + own, np.zeros_like(own)], axis=1)
            tokens[idle, 0] = PASS
            words = np.where(idle, 1, np.where(sets, 3, 2))
            pieces.append((tokens, np.where(number < steps, words, 0)))
        asked = variable[:, -1]
        question = np.stack([np.full(batch, PRINT), FIRST + asked], axis=1)
        return Drawn([*pieces, question], [values[row, asked][:, None]])

    def _possible(self, rng: np.random.Generator, room: Bool[np.ndarray, 'B V']):
        """A step that is possible where some variables have no room, as drawing until one is would
        give: its variable, whether it is `set`, and whether it is `pass`.
        """
        operation = (1 - self.passes) / self.variables
        of_set = np.full(room.shape, operation * self.sets)
        weights = np.concatenate([of_set, operation * (1 - self.sets) * room], axis=1)
        ends = np.cumsum(np.insert(weights, 0, self.passes, axis=1), axis=1)
        drawn = ends[:, -1:] * (1 - rng.random((len(room), 1)))  # in (0, the sum]
        chosen = (ends < drawn).sum(axis=1)
        variable = np.maximum(chosen - 1, 0) % self.variables
        return variable, (chosen >= 1) & (chosen <= self.variables), chosen == 0
