"""Fields of a Markov random field, written cell by cell along rows or from near to far."""

import dataclasses
import functools
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.prompt import LabelTask
from posenc_jax.lab.tasks.task import Length
from posenc_jax.methods.nar import near_to_far_order
from posenc_jax.protocol.bounds import Finite, Ge, Le
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

SWEEPS = 20  # over all cells, from a field that is drawn cell by cell
MAX_STATES = 64


def potts_fields(
    rng: np.random.Generator, count: int, side: int, states: int = 4, coupling: float = 0.9
) -> Int[np.ndarray, 'count side side']:
    """Samples of a Potts model on a torus, `p(x) ~ exp(coupling * equal neighbours)`, by Gibbs
    sampling in which the cells of one colour of a chess board are drawn at once.

    A torus of an odd side is no chess board: there a few neighbours are drawn at the same time.
    """
    x = rng.integers(0, states, (count, side, side))
    black = np.indices((side, side)).sum(0) % 2 == 0
    for sweep in range(2 * SWEEPS):
        near = sum(np.eye(states)[np.roll(x, shift, axis)] for axis in (1, 2) for shift in (-1, 1))
        drawn = np.argmax(coupling * near + rng.gumbel(size=near.shape), axis=-1)
        x = np.where(black == (sweep % 2 == 0), drawn, x)
    return x


@register('markov_field', kind='task')
@dataclasses.dataclass(frozen=True)
class MarkovField(LabelTask):
    """The cells of a field of the Potts model, whose neighbours like to be equal, behind one
    condition token. The task length is the side of the field. Cells are random, so no model
    predicts all of them; the mean loss over the cells tells how well a model knows the field.

    By rows, the target of a token is the next cell, for causal models. From near to far, the target
    of a cell is its right neighbour, and that of the condition token is the corner: what the head
    of rows predicts in a model with the mask `nar()`, which sees whole diagonals and no later ones.
    Cells of the last column have no right neighbour and are not scored, and cells of the first
    column below the corner are no targets. Such a model is an encoder, since its mask and not the
    order of tokens says what may be seen; without `nar()` it sees its targets. Both orders have
    positions (row, column), -1 and -1 for the condition token; encodings of lines need
    `ids='none'`.

    Args:
      states: values of a cell.
      coupling: how much an equal neighbour adds to the log probability.
      order: 'rows' or 'near_to_far'.
      ids: 'grid', or 'none' for the order of rows alone.

    Raises:
      SpecError: `near_to_far` without positions.

    Example:
      >>> task = MarkovField(order='near_to_far')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=2)
      >>> task.decode(batch['tokens'][0]), batch['targets'][0].tolist()
      ('. 2 2 3 3', [2, 2, 0, 3, 0])
    """

    one_length: ClassVar[bool] = True

    states: Annotated[int, Ge(2), Le(MAX_STATES)] = 4
    coupling: Finite = 0.9
    order: Literal['rows', 'near_to_far'] = 'rows'
    ids: Literal['none', 'grid'] = 'grid'

    joint = ' '
    counted = 'side of the field'

    def __post_init__(self):
        if self.order == 'near_to_far' and self.ids == 'none':
            raise SpecError("markov_field order='near_to_far' needs ids='grid', got 'none'")

    @property
    def predicts(self) -> Literal['next', 'here']:
        return 'next' if self.order == 'rows' else 'here'

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return (*map(str, range(self.states)), '.')

    @property
    def output_size(self) -> int:
        return self.states

    def longest(self, length: int) -> int:
        return length**2 + 1

    def range(self, length: Length) -> tuple[int, int]:
        low, side = super().range(length)
        if low != side:
            raise ValueError(f'all fields of a batch have one side, got the range {length!r}')
        return low, side

    def draw(self, rng, batch, low, side):
        cells = potts_fields(rng, batch, side, self.states, self.coupling)
        flat, n = cells.reshape(batch, -1), side * side
        targets, scored = np.zeros((2, batch, n + 1), np.int64)
        if self.order == 'rows':
            targets[:, :-1], scored[:, :-1] = flat, 1
            order = np.arange(n)
        else:
            order = near_to_far_order((side, side))
            has_right = order % side < side - 1
            targets[:, 0], scored[:, 0] = flat[:, 0], 1
            targets[:, 1:][:, has_right] = flat[:, order[has_right] + 1]
            scored[:, 1:][:, has_right] = 1
        tokens = np.insert(flat[:, order], 0, self.states, axis=1)
        if self.ids == 'none':
            return tokens, targets, scored, {}
        cell = np.stack(np.divmod(order, side), axis=-1)
        places = np.concatenate([[[-1, -1]], cell]).astype(np.int32)
        return tokens, targets, scored, {'positions': np.tile(places, (batch, 1, 1))}
