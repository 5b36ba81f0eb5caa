"""The task interface, its conventions for batches, and deterministic batch pipelines.

A batch is a dict of arrays of shape [B, T]:

  tokens     int32, the input of the model; other tasks have `vectors`, float32 [B, T, C], or an
             `image`, float32 [B, rows, columns, C], in its place
  targets    int32, what the model must predict at each input token, see `Task.predicts`;
             [B, 1] if one class is predicted for the row
  loss_mask  float32, the weight of each target in the loss
  positions  int32, position ids, if the task supplies them; [B, T, P] if an id has P components
  segment    int32, the number of the packed document and 0 on padding, if documents are packed
  valid      bool, False on padding, where a model that sees later tokens could read it
  adjacency  float32 [B, T, T], of a graph whose nodes are the rows of `vectors`
  graph_...  float32 or int32 [B, T, T, ...], features of the pairs of its nodes

Tasks of an encoder-decoder also have a source of another width S:

  source            int32 [B, S], the input of the encoder
  source_valid      bool [B, S], False on the padding of the source
  source_positions  int32 [B, S] or [B, S, 2], position ids of the source, if the task supplies
                    them; of two components the last is the place of the word in the target's order

Padding is on the right and has loss mask 0, so no real token of a causal model reads it.
"""

import abc
import functools
import operator
import sys
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.protocol.errors import SpecError, check_choice

if TYPE_CHECKING:
    import grain

SPLITS = ('train', 'validation', 'test')
Batch = dict[str, np.ndarray]
Length = int | tuple[int, int]
# (generator of a batch, rows of the global batch, those that are wanted) -> the wanted rows
Reader = Callable[[np.random.Generator, int, slice], Batch]


class Task(abc.ABC):
    """A distribution over batches, indexed by a task length.

    Subclasses are frozen dataclasses whose fields are the options of the task, registered with kind
    'task'. A task length is an int (exactly that length) or an inclusive range `(shortest,
    longest)` from which the length of every example is drawn. Some tasks take another task as an
    option and change its samples, for example `random_spaces(addition())`.

    Class attributes:
      is_language: whether the task is text, read in windows.
      is_image: whether images are read. The task length is then the number of rows of an image,
        and `width` counts its pixels.
      one_length: whether all examples of training have the length `train.length`, and not one drawn
        from a range that ends there.
      both_sides: whether a target is to be told from the tokens on both sides, so that a causal
        model is refused.
      shortest: the least task length.
      counted: what the task length counts, for messages; `{0.switches}` is an option.
    """

    spec_kind: ClassVar[str] = 'task'
    is_language: ClassVar[bool] = False
    is_image: ClassVar[bool] = False
    one_length: ClassVar[bool] = False
    both_sides: ClassVar[bool] = False
    shortest: ClassVar[int] = 1
    counted: ClassVar[str] = 'length'

    @property
    def channels(self) -> int:
        """Numbers of a vector or of a pixel, where a batch has those; 0 where it has ids."""
        return 0

    @property
    def predicts(self) -> Literal['next', 'here', 'class', 'value', 'bits']:
        """What the target of an input token is: the 'next' token, which needs a causal model; a
        token 'here', at the same place; or the 'class' of the whole row. A `FieldTask` asks for a
        'value', 'bits' or a 'class' at every point.
        """
        return 'next'

    @property
    def output_size(self) -> int:
        """Number of target ids; the ids of the inputs unless a task says otherwise."""
        return self.vocab_size

    @property
    def source_size(self) -> int:
        """Number of token ids of the source, or 0 where a batch has no source."""
        return 0

    def source_width(self, length: Length) -> int:
        """The width S of the source of a batch of this task length, 0 where there is none."""
        return 0

    @property
    def supplies_positions(self) -> bool:
        """Whether batches of `sample` have `positions`; validation and test data may have none."""
        return getattr(self, 'ids', 'none') != 'none'

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids, special ones included; 0 where vectors or images are read."""

    def range(self, length: Length) -> tuple[int, int]:
        """A task length as an inclusive range.

        Raises:
          ValueError: the task has no such length; so do `width`, `sample` and the data sets.
        """
        return length_range(length, self.shortest, self.counted.format(self))

    def longest(self, length: int) -> int:
        """The width of a batch of examples of this length: the length, unless a task has more."""
        return length

    def width(self, length: Length) -> int:
        """The width T of a batch of this task length; for a range, that of its longest example."""
        return self.longest(self.range(length)[1])

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        """Draws `batch` examples.

        The result depends only on the options, the arguments and the state of `rng`.
        """

    @abc.abstractmethod
    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        """Token ids as readable text."""

    def for_evaluation(self) -> 'Task':
        """The task for validation and test data, whose loss mask marks exactly the scored tokens.

        In training, a task may give weight to further tokens.
        """
        return self

    def of_split(self, split: str) -> 'Task':
        """The task whose reader draws the batches of a split."""
        return self if split == 'train' else self.for_evaluation()

    def reader(self, split: str, length: Length) -> Reader:
        """What draws the batches of a data set. Stored data are opened here, once."""
        self.width(length)
        return functools.partial(_sampled_rows, self, length)

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

        Batch i depends only on (seed, split, i). Splits draw from different random streams, also if
        their seeds are equal.

        Args:
          length: task length, an int or an inclusive range.
          batch_size: rows of the global batch, over all processes.
          seed: 0 <= seed < 2**32.
          split: 'train', 'validation' or 'test'; the last two draw from `for_evaluation()`.
          shard: (process, number of processes). The dataset holds the contiguous rows of this
            process in the same global batches.

        Raises:
          ValueError: an impossible length, seed, split or shard, or data that cannot be read;
            raised by this call, not at the first batch.
        """
        batch_rng(seed, split, 0)
        rows = shard_rows(batch_size, shard)
        return self.of_split(split).batches(length, batch_size, seed, split, rows)

    def batches(
        self, length: Length, batch_size: int, seed: int, split: str, rows: slice
    ) -> 'grain.MapDataset':
        """The data set of these rows of the global batches of a split; see `dataset`."""
        import grain

        read = self.reader(split, length)
        return grain.MapDataset.range(sys.maxsize).map(
            functools.partial(_numbered_rows, read, batch_size, seed, split, rows)
        )


def check_decoder_task(wrapper: str, task: Task) -> None:
    """Raises SpecError if the task `wrapper`, which changes the samples of another one, cannot
    change those of `task`, since this does not predict the next token or has a source.
    """
    if task.predicts != 'next' or task.source_size:
        found = f'predicts={task.predicts!r}' if task.predicts != 'next' else 'a source'
        raise SpecError(
            f'{wrapper} takes a task that predicts the next token and has no source, such as '
            f'reverse(); {type(task).__name__} has {found}'
        )


def _sampled_rows(task, length, rng, batch_size, rows):
    batch = task.sample(rng, batch_size, length)
    check_sample(task, batch)
    return rows_of(batch, rows)


def _numbered_rows(read, batch_size, seed, split, rows, index):
    return read(batch_rng(seed, split, index), batch_size, rows)


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""
    return {name: array[rows] for name, array in batch.items()}


def check_sample(task: Task, batch: Batch) -> None:
    """Raises ValueError if ids of a batch lie outside the vocabularies of its task, or the places
    of source words in the target's order outside the source. Such ids would become NaN, or a loss
    that no logit stands for.
    """
    numbers = dict(batch)
    if (places := batch.get('source_positions')) is not None and places.ndim == 3:
        numbers['alignments'] = places[..., -1]
    for name, size, told in (
        ('tokens', task.vocab_size, 'vocab_size'),
        ('targets', task.output_size, 'output_size'),
        ('source', task.source_size, 'source_size'),
        ('alignments', batch['source'].shape[1] if 'source' in batch else 0, 'words of the source'),
    ):
        low, high = (
            (f(numbers[name], initial=0) for f in (np.min, np.max))
            if name in numbers and numbers[name].dtype.kind in 'iu'  # values are not numbered
            else (0, 0)
        )
        if low < 0 or high >= max(size, 1):
            raise ValueError(
                f'{type(task).__name__}: {name} must lie in 0 .. {size - 1} ({told}), got '
                f'{low} .. {high}'
            )


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
    """`length`, an int or a range (shortest, longest), as an inclusive range; `what` names it.

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


def batch_iterator(dataset: 'grain.MapDataset', *, prefetch: int = 2) -> 'grain.DatasetIterator':
    """A resumable iterator (`get_state`, `set_state`) with `prefetch` batches prepared ahead.

    One thread prepares them. Plain `iter(dataset)` would prepare 500 batches in 16 threads, which
    take the cores from a training step on CPU.
    """
    import grain

    return iter(
        dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
    )
