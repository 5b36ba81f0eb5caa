"""Any order: the tokens of another task in a shuffled order. Each token has its own position and
that of the token to predict.
"""

import collections
import dataclasses
import functools
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from posenc_jax.lab.tasks.sequences import real_tokens
from posenc_jax.lab.tasks.task import Batch, Length, Task, batch_rng, check_decoder_task
from posenc_jax.protocol.bounds import Count
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

if TYPE_CHECKING:
    import grain


def fractal_order(length: int) -> Int[np.ndarray, ' L']:
    """Midpoints of ever smaller halves, breadth first, so that each token is far from earlier ones.

    A queue starts with the range [0, L). Each range [a, b) taken from it gives its midpoint `(a +
    b) // 2`, and its two halves, unless they are empty, join the end of the queue: the right one
    first if the number of earlier midpoints is even, else the left one.
    """
    queue, order = collections.deque([(0, length)]), []
    while queue:
        low, high = queue.popleft()
        if low >= high:
            continue
        middle = (low + high) // 2
        halves = [(middle + 1, high), (low, middle)]
        queue.extend(halves if len(order) % 2 == 0 else halves[::-1])
        order.append(middle)
    return np.array(order, np.int64)


def shuffled_batch(
    batch: Batch, priority: Float[np.ndarray, 'B longer'], kept: Int[np.ndarray, ' B']
) -> Batch:
    """Sorts the tokens of a next-token batch by priority; all targets but padding bear loss.

    Args:
      batch: a batch in which the last real token of each row is a scored target.
      priority: a number in [0, 1) for each token, the last target included; lower is earlier.
      kept: how many tokens at the beginning of each row stay in place.

    Returns:
      A batch with positions [B, T, 2]: the place in the text of the input token and of its target.
    """
    sequence = np.concatenate([batch['tokens'][:, :1], batch['targets']], axis=1)
    count, place = real_tokens(batch)[:, None], np.arange(sequence.shape[1])
    priority = np.where(
        place < kept[:, None],
        place - sequence.shape[1],
        np.where(place < count, priority, 1 + place),
    )
    order = np.argsort(priority, axis=1, kind='stable')
    shuffled = np.take_along_axis(sequence, order, axis=1)
    return {
        'tokens': np.ascontiguousarray(shuffled[:, :-1], np.int32),
        'targets': np.ascontiguousarray(shuffled[:, 1:], np.int32),
        'loss_mask': np.broadcast_to(place[1:] < count, batch['tokens'].shape).astype(np.float32),
        'positions': np.stack([order[:, :-1], order[:, 1:]], axis=-1).astype(np.int32),
    }


@register('any_order', kind='task')
@dataclasses.dataclass(frozen=True)
class AnyOrder(Task):
    """Another task with the tokens of each example in an order o of its own, for `sigma_gpt`.

    Inputs `x[o_0 .. o_(T-2)]`, targets `x[o_1 .. o_(T-1)]`, positions `(o_t, o_(t+1))`. All T - 1
    targets bear loss, those of the question included. The task length is that of the inner task.
    Validation and test data are those of the inner task unless `in_evaluation` is set: they have no
    positions, and `sigma_gpt` reads them from left to right. After Pannatier et al., "sigma-GPTs: A
    New Approach to Autoregressive Models", arXiv 2404.09562 (official code idiap/sigma-gpt). If the
    inner task reads text, it takes no range of lengths: set train.min_length to train.length.

    Args:
      task: the inner task, without positions of its own or packed documents.
      order: 'random' (uniform over all orders), 'fractal' (see `fractal_order`) or 'left_to_right'.
      prompt: whether the tokens before the first scored target stay at the beginning, in order.
      curriculum: number of batches over which the probability that an example stays in order falls
        linearly from 1 to 0; 0 for none.
      in_evaluation: whether validation and test data are shuffled too, with all targets scored.

    Raises:
      SpecError: a task with positions, packed documents or a source, or one that does not predict
        the next token.

    Example:
      >>> from posenc_jax.lab.tasks.copy import Reverse
      >>> task = AnyOrder(Reverse(symbols=10), order='fractal')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=2)
      >>> task.decode(batch['tokens'][0]), batch['positions'][0].tolist()  # $68=86$
      ('=886$6', [[3, 5], [5, 1], [1, 4], [4, 6], [6, 2], [2, 0]])
    """

    task: Task
    order: Literal['random', 'fractal', 'left_to_right'] = 'random'
    prompt: bool = False
    curriculum: Count = 0
    in_evaluation: bool = False

    def __post_init__(self):
        check_decoder_task('any_order', self.task)
        if self.task.supplies_positions:
            ids, name = getattr(self.task, 'ids', None), type(self.task).__name__
            other = f'{name} supplies them too; use a task without positions, such as reverse()'
            found = f"the task has ids={ids!r}; use ids='none'" if ids else other
            raise SpecError(f'any_order supplies positions itself, but {found}')
        if getattr(self.task, 'packing', 'stream') != 'stream':
            raise SpecError(
                'any_order shuffles one document per row, but the task has '
                f"packing={self.task.packing!r}; use packing='stream'"
            )

    supplies_positions = True

    @property
    def vocab_size(self) -> int:
        return self.task.vocab_size

    def width(self, length: Length) -> int:
        return self.task.width(length)

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        return self._shuffled(
            self.task.sample(rng, batch, length), rng, np.zeros(batch, bool), slice(0, batch)
        )

    def batches(
        self, length: Length, batch_size: int, seed: int, split: str, rows: slice
    ) -> 'grain.MapDataset':
        """As `Task.batches`; the number of a batch is its place in the curriculum."""
        inner = self.task.of_split(split).batches(length, batch_size, seed, split, rows)
        return inner.map_with_index(
            functools.partial(_shuffled_rows, self, batch_size, seed, split, rows)
        )

    def _shuffled(self, batch: Batch, rng, left: Bool[np.ndarray, ' B'], rows: slice) -> Batch:
        """Shuffles the rows of a process; `left` marks examples that stay from left to right.

        Orders are drawn for the whole global batch, so that they do not depend on the sharding.
        """
        scored, length = batch['loss_mask'] > 0, batch['loss_mask'].shape[1] + 1
        kept = np.argmax(scored, axis=1) + 1 if self.prompt else np.zeros(len(scored), np.int64)
        priority = rng.random((len(left), length))[rows]
        rising = np.arange(length) / length
        if self.order == 'left_to_right':
            priority = np.broadcast_to(rising, priority.shape).copy()
        elif self.order == 'fractal':
            for row, (first, count) in enumerate(zip(kept, real_tokens(batch))):
                priority[row, first:count] = np.argsort(fractal_order(count - first)) / length
        return shuffled_batch(batch, np.where(left[rows, None], rising, priority), kept)

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        return self.task.decode(ids)

    def for_evaluation(self) -> Task:
        return self if self.in_evaluation else self.task.for_evaluation()


def _shuffled_rows(task, batch_size, seed, split, rows, index, batch):
    (rng,) = batch_rng(seed, split, index).spawn(1)  # independent of the draws of the batch
    chance = max(0.0, 1 - index / task.curriculum) if task.curriculum and split == 'train' else 0.0
    return task._shuffled(batch, rng, rng.random(batch_size) < chance, rows)
