"""Random spaces: any task with its characters at random distances, so that absolute positions carry
no information.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.coupling import plain_ids
from posenc_jax.lab.tasks.sequences import real_tokens
from posenc_jax.lab.tasks.task import Batch, Length, Task, check_decoder_task
from posenc_jax.protocol.bounds import Count
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register


def spread(
    batch: Batch, gaps: Int[np.ndarray, 'B T'], space: int, width: int
) -> tuple[Batch, Int[np.ndarray, ' B']]:
    """Puts `gaps` spaces before the targets of a next-token batch; they bear no loss and serve as
    padding up to the width. The last real token of each row must be a scored target.

    Returns:
      The batch without positions, and the number of tokens of each row, the last target included.
    """
    count = real_tokens(batch)
    real = np.arange(1, gaps.shape[1] + 1) < count[:, None]
    at = np.cumsum(np.where(real, gaps, 0) + 1, axis=1)
    rows, columns = np.nonzero(real)
    sequence = np.full((len(gaps), width + 1), space, np.int32)
    scored = np.zeros((len(gaps), width + 1), np.float32)
    sequence[:, 0] = batch['tokens'][:, 0]
    sequence[rows, at[rows, columns]] = batch['targets'][rows, columns]
    scored[rows, at[rows, columns]] = batch['loss_mask'][rows, columns]
    ends = np.take_along_axis(at, count[:, None] - 2, axis=1)[:, 0] + 1
    cut = {'tokens': sequence[:, :-1], 'targets': sequence[:, 1:], 'loss_mask': scored[:, 1:]}
    return {name: np.ascontiguousarray(array) for name, array in cut.items()}, ends


@register('random_spaces', kind='task')
@dataclasses.dataclass(frozen=True)
class RandomSpaces(Task):
    """Another task with 0 .. `most` spaces before every character but the first.

    The task length is that of the inner task. Spaces bear no loss. They have one more token id, the
    last, which is also the padding. After Shen et al., "Positional Description Matters for
    Transformers Arithmetic", arXiv 2311.14737, and Zhou et al., arXiv 2402.09371, who augment
    training data in this way: validation and test data have no spaces unless `in_evaluation` is
    set. The papers do not publish the distribution of the number of spaces; it is our choice.

    Args:
      task: the inner task. If it supplies plain ids, these count the spaces as well.
      most: largest number of spaces before a character.
      law: distribution of the number of spaces: 'uniform', or 'geometric' with ratio 1/2.
      in_evaluation: whether validation and test data have spaces as well.

    Raises:
      SpecError: a task that reads text, one that supplies positions other than plain ids, has a
        source, or does not predict the next token.

    Example:
      >>> from posenc_jax.lab.tasks.arithmetic import Addition
      >>> task = RandomSpaces(Addition(reverse_output=True), most=3)
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=2)
      >>> task.decode(batch['tokens'][0])
      '$5...8...+..1..2..=...0...7$............'
    """

    task: Task
    most: Count = 3
    law: Literal['uniform', 'geometric'] = 'uniform'
    in_evaluation: bool = False

    def __post_init__(self):
        check_decoder_task('random_spaces', self.task)
        if self.task.is_language:
            raise SpecError('random_spaces takes a task with answers, not one that reads text')
        if self.ids not in ('none', 'plain'):
            raise SpecError(
                f'random_spaces: spaces have no id in a task with ids={self.ids!r}; use '
                "ids='none' or 'plain'"
            )
        if self.task.supplies_positions and self.ids == 'none':
            name = type(self.task).__name__
            raise SpecError(
                f'random_spaces: {name} supplies no positions for spaces; put random_spaces inside '
                f'{name}'
            )

    @property
    def ids(self) -> str:
        """The kind of position ids, that of the inner task."""
        return getattr(self.task, 'ids', 'none')

    @property
    def vocab_size(self) -> int:
        return self.task.vocab_size + 1

    def width(self, length: Length) -> int:
        return self.task.width(length) * (self.most + 1)

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        inner = self.task.sample(rng, batch, length)
        chance = (
            np.ones(self.most + 1) if self.law == 'uniform' else 0.5 ** np.arange(self.most + 1)
        )
        gaps = rng.choice(self.most + 1, inner['tokens'].shape, p=chance / chance.sum())
        out, ends = spread(inner, gaps, self.task.vocab_size, self.width(length))
        if 'positions' in inner:
            out['positions'] = plain_ids(ends - 2, width=out['tokens'].shape[1] + 1)[:, :-1]
        return out

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        """The text of the inner task with '.' for every space."""
        space = self.task.vocab_size
        joint = ' ' if ' ' in self.task.decode(np.zeros(2, np.int64)) else ''
        return joint.join('.' if i == space else self.task.decode(np.array([i])) for i in ids)

    def for_evaluation(self) -> 'RandomSpaces':
        task = dataclasses.replace(self, task=self.task.for_evaluation())
        return task if self.in_evaluation else dataclasses.replace(task, most=0)
