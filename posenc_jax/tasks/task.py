"""The task interface, its conventions for next-token batches, and deterministic batch pipelines.

A batch is a dict of arrays, all [B, T]: `tokens` int32 (model input), `targets` int32 (what each
position must predict: the next token), `loss_mask` float32, and where a task needs them `positions`
int32 (ids it supplies itself, [B, T, P] where each has P components) and `segment` int32 (packed
documents, 0 on padding). Padding is on the right and carries loss 0, so a causal model never reads
it.
"""

import abc
import functools
import operator
import sys
import zlib
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Int

from posenc_jax.core.registry import check_choice

if TYPE_CHECKING:
    import grain

SPLITS = ('train', 'validation', 'test')
Batch = dict[str, np.ndarray]
Length = int | tuple[int, int]


class Task(abc.ABC):
    """A distribution over next-token batches, indexed by a task length.

    Subclasses are frozen dataclasses whose fields are the options of the task, registered with kind
    'task'. A task length is an int (exactly that length) or an inclusive range `(shortest,
    longest)` from which every example draws its own. A spec string may nest a task in one that
    changes what it samples.
    """

    spec_kind: ClassVar[str] = 'task'
    is_language: ClassVar[bool] = False

    @property
    def supplies_positions(self) -> bool:
        """Whether what `sample` draws has positions; validation and test data may have none."""
        return getattr(self, 'ids', 'none') != 'none'

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids, special ones included."""

    @abc.abstractmethod
    def width(self, length: Length) -> int:
        """T of a batch whose longest example has task length `length`.

        Raises:
          ValueError: the task has no such length.
        """

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        """`batch` examples; the result depends on the options, the arguments and the state of `rng`
        alone.
        """

    @abc.abstractmethod
    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        """Token ids as text for people."""

    def for_evaluation(self) -> 'Task':
        """The task whose loss mask marks exactly what is scored (training may weight further
        tokens).
        """
        return self

    def dataset(
        self,
        *,
        length: Length,
        batch_size: int,
        seed: int,
        split: str = 'train',
        shard: tuple[int, int] = (0, 1),
    ) -> 'grain.MapDataset':
        """An endless random-access dataset of batches; `dataset[:n]` are its first n batches.

        Batch i depends on (seed, split, i) alone, and no seed makes two splits share a batch.

        Args:
          length: task length or inclusive range.
          batch_size: rows of the global batch, over all processes.
          seed: 0 <= seed < 2**32.
          split: 'train', 'validation' or 'test'; the last two draw from `for_evaluation()`.
          shard: (process, processes). The dataset then holds this process's contiguous rows of the
            same global batches.

        Raises:
          ValueError: impossible length, seed, split or shard, at once rather than at the first
            batch.
        """
        import grain

        task = self if split == 'train' else self.for_evaluation()
        task.width(length)
        batch_rng(seed, split, 0)
        rows = shard_rows(batch_size, shard)
        return grain.MapDataset.range(sys.maxsize).map(
            functools.partial(_generated_batch, task, batch_size, length, seed, split, rows)
        )


def _generated_batch(task, batch_size, length, seed, split, rows, index):
    batch = task.sample(batch_rng(seed, split, index), batch_size, length)
    return {name: array[rows] for name, array in batch.items()}


def batch_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of batch `index` of a split: PCG64 keyed by (split, seed, index), equal on
    every machine.

    Raises:
      ValueError: seed outside 0..2**32-1, or an unknown split.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f'seed must be an integer with 0 <= seed < 2**32 = {2**32}, got {seed!r}')
    name = zlib.crc32(check_choice('split', split, SPLITS).encode())
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([name, int(seed)], spawn_key=(int(index),)))
    )


def shard_rows(batch_size: int, shard: tuple[int, int]) -> slice:
    """The contiguous rows of a global batch that process `shard[0]` of `shard[1]` holds.

    Raises:
      ValueError: the shard does not exist or the processes cannot share the batch evenly.
    """
    process, processes = shard
    if batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {batch_size}')
    if processes < 1 or not 0 <= process < processes:
        raise ValueError(
            f'shard is (process, processes) with 0 <= process < processes, got {shard}'
        )
    if batch_size % processes:
        below, above = batch_size // processes * processes, -(-batch_size // processes) * processes
        nearest = f'{below} or {above}' if below else f'{above}'
        raise ValueError(
            f'batch_size {batch_size} cannot be shared by {processes} processes; nearest: {nearest}'
        )
    share = batch_size // processes
    return slice(process * share, (process + 1) * share)


def length_range(length: Length, shortest: int, what: str) -> tuple[int, int]:
    """`length` as an inclusive range.

    Raises:
      ValueError: not an int or an ascending pair of ints, or below `shortest`.
    """
    pair = length if isinstance(length, (tuple, list)) else (length, length)
    try:
        low, high = (operator.index(n) for n in pair)
    except (TypeError, ValueError):
        raise ValueError(
            f'{what} must be an int or a pair of ints (shortest, longest), got {length!r}'
        ) from None
    if low > high:
        raise ValueError(f'{what} {length!r} is empty: did you mean {(high, low)}?')
    if low < shortest:
        raise ValueError(f'{what} must be at least {shortest}, got {length!r}')
    return low, high


def join_ragged(
    pieces: list[tuple[Int[np.ndarray, 'B _'], Int[np.ndarray, ' B']]], width: int, fill: int
) -> tuple[Int[np.ndarray, 'B W'], Int[np.ndarray, ' B']]:
    """Writes pieces of different lengths one after the other into rows, and says where each row
    ends.

    Args:
      pieces: pairs (values [B or 1, any], lengths [B]); of row b the first `lengths[b]` values are
        used.
      width: width of the result.
      fill: value of what remains on the right.
    """
    batch = len(pieces[0][1])
    out = np.full((batch, width), fill, np.int32)
    ends = np.zeros(batch, np.int64)
    for values, lengths in pieces:
        row, column = np.nonzero(np.arange(values.shape[1]) < lengths[:, None])
        out[row, ends[row] + column] = np.broadcast_to(values, (batch, values.shape[1]))[
            row, column
        ]
        ends += lengths
    return out, ends


def one_token(token: int, batch: int) -> tuple[Int[np.ndarray, '1 1'], Int[np.ndarray, ' B']]:
    """A piece for `join_ragged`: this token in every row."""
    return np.full((1, 1), token), np.ones(batch, np.int64)


def next_token_batch(
    sequence: Int[np.ndarray, 'B N'],
    ends: Int[np.ndarray, ' B'],
    answer_start: Int[np.ndarray, ' B'],
    positions: Int[np.ndarray, 'B N *P'] | None = None,
) -> Batch:
    """Inputs and targets of right-padded sequences, with loss on `answer_start <= index < ends` (as
    targets).

    The position of the last prompt token predicts the first token of the answer, so with N tokens
    in a row and the answer at a, the mask is 1 for a - 1 <= t <= N - 2.

    Args:
      sequence: prompt, answer and padding.
      ends: number of real tokens per row.
      answer_start: index in `sequence` of the first answer token.
      positions: ids of the tokens of `sequence`, if the task supplies them.
    """
    target = np.arange(1, sequence.shape[1])
    scored = (target >= answer_start[:, None]) & (target < ends[:, None])
    batch = {
        'tokens': np.ascontiguousarray(sequence[:, :-1], np.int32),
        'targets': np.ascontiguousarray(sequence[:, 1:], np.int32),
        'loss_mask': scored.astype(np.float32),
    }
    if positions is not None:
        batch['positions'] = np.ascontiguousarray(positions[:, :-1], np.int32)
    return batch


def real_tokens(batch: Batch) -> Int[np.ndarray, ' B']:
    """Tokens of each row that are no padding, the last target included: what follows the last
    scored target is padding.

    Example:
      >>> real_tokens(
      ...     {'loss_mask': np.array([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])}
      ... ).tolist()
      [4, 5]
    """
    scored = batch['loss_mask'] > 0
    return scored.shape[1] - np.argmax(scored[:, ::-1], axis=1) + 1


def batch_iterator(dataset: 'grain.MapDataset', *, prefetch: int = 2) -> 'grain.DatasetIterator':
    """A resumable iterator (`get_state`, `set_state`) that prepares `prefetch` batches ahead in one
    thread.

    Plain `iter(dataset)` prepares 500 batches in 16 threads, which starves a CPU training step.

    Example:
      iterator = batch_iterator(task.dataset(length=(1, 10), batch_size=64, seed=0))
      state = iterator.get_state()
      batch = next(iterator)
    """
    import grain

    return iter(
        dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
    )
