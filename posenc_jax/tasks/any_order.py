"""Any order: the tokens of another task in a shuffled order, with the position of each and of the
one to predict.
"""

import collections
import dataclasses
import functools
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from posenc_jax.core.registry import SpecError, check_choice, register
from posenc_jax.tasks.task import Batch, Length, Task, batch_rng, real_tokens, shard_rows

if TYPE_CHECKING:
    import grain

ORDERS = ('random', 'fractal', 'left_to_right')


def fractal_order(length: int) -> Int[np.ndarray, ' L']:
    """Midpoints of halves, breadth first: the token of every step is as far from those before it as
    can be.

    A queue starts with the whole; each range taken from it gives its middle `(a + b) // 2` and puts
    its two halves at the end of the queue, the right one first after an even number of ranges that
    were not empty, the left one first after an odd one.

    Example:
      >>> fractal_order(7).tolist()
      [3, 5, 1, 4, 6, 2, 0]
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
    """The tokens of a next-token batch in the order of their priorities; every target that is no
    padding bears loss.

    Args:
      batch: a batch whose scored targets end where its rows do.
      priority: in [0, 1); lower is earlier.
      kept: how many tokens of each row stay where they are, at the beginning.

    Returns:
      A batch with positions [B, T, 2]: where the token stands in the text, and where the one it
        predicts does.

    Example:
      >>> batch = {
      ...     'tokens': np.array([[5, 6]]),
      ...     'targets': np.array([[6, 7]]),
      ...     'loss_mask': np.array([[1.0, 1.0]]),
      ... }
      >>> out = shuffled_batch(batch, np.array([[0.5, 0.9, 0.2]]), np.array([0]))
      >>> out['tokens'].tolist(), out['targets'].tolist(), out['positions'].tolist()
      ([[7, 5]], [[5, 6]], [[[2, 0], [0, 1]]])
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
    """Another task with the tokens of every example in an order of its own, for `sigma_gpt`; the
    length is that of the task.

    Inputs `x[o_0 .. o_(T-2)]`, targets `x[o_1 .. o_(T-1)]`, positions `(o_t, o_(t+1))`; loss on all
    T - 1 targets, the question among them. Validation and test data are those of the task, left to
    right, unless they are asked for: sigma_gpt reads them without positions. After Pannatier et
    al., "sigma-GPTs: A New Approach to Autoregressive Models", arXiv 2404.09562 (official code
    idiap/sigma-gpt). A task that reads text has one length: set train.min_length to train.length.

    Args:
      task: the task, without positions of its own or packed documents.
      order: 'random' (uniform over all orders), 'fractal' (see `fractal_order`) or 'left_to_right'.
      prompt: what comes before the first scored target stays at the beginning, in order.
      curriculum: batches over which the probability that an example is left to right falls linearly
        from 1 to 0.
      in_evaluation: put validation and test data into this order too, all of it scored.

    Raises:
      SpecError: an unknown order, a negative curriculum, a task with positions or packed documents.

    Example:
      task = AnyOrder(Reverse(symbols=10), order='fractal')
      batch = task.sample(np.random.default_rng(0), batch=4, length=5)
      print(batch['tokens'][0], batch['positions'][0])
    """

    task: Task
    order: Literal['random', 'fractal', 'left_to_right'] = 'random'
    prompt: bool = False
    curriculum: int = 0
    in_evaluation: bool = False

    def __post_init__(self):
        check_choice('order', self.order, ORDERS)
        if self.curriculum < 0:
            raise SpecError(
                f'any_order curriculum is a number of batches, at least 0, got {self.curriculum}'
            )
        if self.task.supplies_positions:
            ids, name = getattr(self.task, 'ids', None), type(self.task).__name__
            other = f'so does {name}; use a task without, as language() or reverse()'
            found = f"the task has ids={ids!r}; use ids='none'" if ids else other
            raise SpecError(f'any_order supplies positions itself, {found}')
        if getattr(self.task, 'packing', 'stream') != 'stream':
            raise SpecError(
                'any_order shuffles one document a row, the task has '
                f"packing={self.task.packing!r}; use 'stream'"
            )

    @property
    def supplies_positions(self) -> bool:
        return True

    @property
    def vocab_size(self) -> int:
        return self.task.vocab_size

    def width(self, length: Length) -> int:
        return self.task.width(length)

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        return self._shuffled(
            self.task.sample(rng, batch, length), rng, np.zeros(batch, bool), slice(0, batch)
        )

    def dataset(
        self,
        *,
        length: Length,
        batch_size: int,
        seed: int,
        split: str = 'train',
        shard: tuple[int, int] = (0, 1),
    ) -> 'grain.MapDataset':
        """As `Task.dataset`; the curriculum counts batches."""
        plain = self.task.dataset(
            length=length, batch_size=batch_size, seed=seed, split=split, shard=shard
        )
        if split != 'train' and not self.in_evaluation:
            return plain
        rows = shard_rows(batch_size, shard)
        return plain.map_with_index(
            functools.partial(_shuffled_rows, self, batch_size, seed, split, rows)
        )

    def _shuffled(self, batch: Batch, rng, left: Bool[np.ndarray, ' B'], rows: slice) -> Batch:
        """`rows` of a batch in their orders, drawn for all of the batch; `left` says which examples
        are left to right.
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
    (rng,) = batch_rng(seed, split, index).spawn(1)  # apart from what drew the batch
    chance = max(0.0, 1 - index / task.curriculum) if task.curriculum and split == 'train' else 0.0
    return task._shuffled(batch, rng, rng.random(batch_size) < chance, rows)
