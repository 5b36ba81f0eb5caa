"""Evaluation protocols of language modelling: which tokens of a stream are scored, and with how
much context. This module plans windows on integers; no model is called.

A stream of N tokens has N - 1 targets: target t is token t + 1, predicted from tokens up to t. All
plans count targets.

Reference: Press et al., "Train Short, Test Long", arXiv 2108.12409, for `nonoverlapping` and
`sliding`. They differ because tokens at the start of a window have little context (the early token
curse). In `nonoverlapping` this raises the loss of short windows most.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

from posenc_jax.protocol.errors import check_choice

PROTOCOLS = ('nonoverlapping', 'sliding', 'same_tokens', 'per_position')
CHOICES = (*PROTOCOLS, 'within_blocks')


@dataclasses.dataclass(frozen=True)
class Windows:
    """A list of windows. Window w reads the inputs `start[w] .. start[w] + size[w] - 1` and scores
    the last `scored[w]` of their targets.

    Attributes:
      length: width of a window in a batch; `size` is smaller only where the stream ends.
      start, size, scored: see above.
    """

    length: int
    start: Int[np.ndarray, ' W']
    size: Int[np.ndarray, ' W']
    scored: Int[np.ndarray, ' W']

    def __len__(self) -> int:
        return len(self.start)


def sliding(targets: int, length: int, stride: int) -> Windows:
    """Windows that start at 0, stride, 2 stride, ...; each scores the targets that no earlier
    window has scored.

    Every target is scored exactly once. Except in the first window, its context is at least
    `length - stride` tokens.

    Raises:
      ValueError: the stream is shorter than a window, or the stride would leave targets out.
    """
    _check_length(targets, length)
    check_stride(stride, length)
    start = np.arange(1 + -(-(targets - length) // stride)) * stride
    end = np.minimum(start + length, targets)
    return Windows(length, start, end - start, np.diff(end, prepend=0))


def nonoverlapping(targets: int, length: int) -> Windows:
    """Windows one after the other. The first target of each window is predicted from one token.

    Raises:
      ValueError: the stream is shorter than a window.
    """
    return sliding(targets, length, length)


def within_blocks(targets: int, length: int) -> Windows:
    """Blocks of `length` tokens one after the other, of which every token but the first is scored
    with its context in the block.

    It differs from `nonoverlapping` in the first token of each block, which is scored there with
    the token before it as its context. Blocks of N tokens leave ceil(N / length) tokens out.

    Raises:
      ValueError: the stream is shorter than a block, or a block has no token to score.

    Example:
      >>> plan = within_blocks(9, 4)  # 10 tokens: 0 .. 3, 4 .. 7, 8 .. 9
      >>> plan.start.tolist(), plan.size.tolist(), plan.scored.tolist()
      ([0, 4, 8], [3, 3, 1], [3, 3, 1])
    """
    if length < 2:
        raise ValueError(
            f'a block of {length} tokens has no token to score within it; use lengths of at least 2'
        )
    _check_length(targets, length - 1)
    start = np.arange(0, targets, length)
    size = np.minimum(start + length - 1, targets) - start
    return Windows(length - 1, start, size, size)


def same_tokens(
    targets: int, lengths: tuple[int, ...], *, scored: int, blocks: int
) -> dict[int, Windows]:
    """Windows of several lengths that score the same targets: windows of all lengths end at the
    same places.

    This is the only protocol that shows the benefit of a longer context directly. Blocks of
    `scored` targets are spread evenly over the stream and do not overlap.

    Args:
      targets: how many targets the stream has.
      lengths: window lengths.
      scored: how many targets are scored at the end of each window; at most the shortest length.
      blocks: the largest number of blocks; a short stream has room for fewer.

    Raises:
      ValueError: the stream is shorter than the longest window, or a number is out of range.
    """
    longest = max(lengths)
    _check_length(targets, longest)
    check_stride(scored, min(lengths))
    if blocks < 1:
        raise ValueError(f'blocks must be at least 1, got {blocks}')
    room = (targets - longest) // scored + 1
    numbers = np.linspace(0, room - 1, min(blocks, room)).round().astype(np.int64)
    end = longest + scored * numbers
    full = lambda value: np.full(len(end), value)
    return {length: Windows(length, end - length, full(length), full(scored)) for length in lengths}


def position_edges(length: int, buckets: int) -> Int[np.ndarray, ' edges']:
    """Edges 0 < ... < length of buckets of positions. From the end there are two buckets per
    octave; the first bucket holds the rest.

    A trained length of `length` divided by a power of two is an edge, so no bucket straddles it.

    Example:
      >>> position_edges(64, 5)
      array([ 0, 16, 23, 32, 45, 64])
    """
    if buckets < 1:
        raise ValueError(f'buckets must be at least 1, got {buckets}')
    halvings = np.arange(min(buckets, 128))  # after 128 of them the edge is 0
    inner = np.round(length * 2.0 ** (-halvings / 2)).astype(np.int64)
    return np.unique(np.append(inner, 0))


def window_batch(
    stream: Int[np.ndarray, ' N'], windows: Windows, rows: Int[np.ndarray, ' B']
) -> dict[str, np.ndarray]:
    """The batch of some windows.

    Args:
      stream: tokens of the text.
      windows: all windows of a plan.
      rows: numbers of the windows in the batch.

    Returns:
      Arrays [B, length]: `tokens`, `targets`, `index` (of the tokens in the stream), `valid` (False
      past the end of the stream) and `scored`.
    """
    column = np.arange(windows.length)
    size = windows.size[rows, None]
    valid: Bool[np.ndarray, 'B L'] = column < size
    index = np.where(valid, windows.start[rows, None] + column, 0)
    return {
        'tokens': stream[index].astype(np.int32),
        'targets': stream[index + 1].astype(np.int32),
        'index': index,
        'valid': valid,
        'scored': valid & (column >= size - windows.scored[rows, None]),
    }


def check_stride(stride: int, shortest: int) -> None:
    """Raises ValueError if windows of length `shortest` that start `stride` tokens apart would
    leave targets out.
    """
    if not 1 <= stride <= shortest:
        raise ValueError(
            f'eval.stride is {stride}; it must be between 1 and the shortest length, {shortest}'
        )


def _check_length(targets, length):
    if length < 1:
        raise ValueError(f'window length must be at least 1, got {length}')
    if targets < length:
        raise ValueError(
            f'a window of length {length} needs {length + 1} tokens, but the text has '
            f'{targets + 1}; use a longer text '
            f'or lengths up to {targets}'
        )


# `sliding` and `same_tokens` read length / stride tokens for each token that they score. They read
# at most `_READING` times `tokens`.
_READING = 4
# A stretch of `sliding` has at least so many windows' length, since the targets of its first window
# have less context than the others.
_LONG = 4


def spread(
    targets: int, total: int, least: int, make: Callable[[int], Windows], step: int = 1
) -> Windows:
    """Windows in stretches of the stream that lie at equal distances, from its start to its end.

    Files of one kind lie together in many texts, so the start of a text is no sample of it.

    Args:
      targets: how many targets the stream has.
      total: at most so many targets are scored.
      least: the least size of a stretch.
      make: the windows of a stretch from its size.
      step: the size of a stretch is a multiple of it, unless there is only one.

    Example:
      >>> plan = spread(100, 24, 8, lambda size: nonoverlapping(size, 4))
      >>> plan.start.tolist()
      [0, 4, 46, 50, 92, 96]
    """
    if total >= targets:
        return make(targets)
    count = max(1, total // least)
    size = total // count
    if count > 1:
        size -= size % step
    windows = make(size)
    first = np.linspace(0, targets - size, count).round().astype(np.int64)
    tiled = lambda value: np.tile(value, count)
    return Windows(
        windows.length,
        np.add.outer(first, windows.start).ravel(),
        tiled(windows.size),
        tiled(windows.scored),
    )


def plan(
    targets: int, lengths: tuple[int, ...], names: tuple[str, ...], *, tokens: int, stride: int
) -> list[tuple[str, int, Windows]]:
    """The windows that an evaluation reads, as a list of (protocol, length, windows).

    Args, Raises: as `evaluate_language`; `targets` is the number of targets of the stream.
    """
    for name in names:
        check_choice('protocol', name, CHOICES)
    longest = max(lengths)
    nonoverlapping(targets, longest)  # raises where the text is too short
    first = min(targets, max(tokens, longest))
    at_most = max(1, _READING * tokens // longest)
    out = []
    for name in names:
        if name in ('nonoverlapping', 'within_blocks', 'per_position'):
            make = within_blocks if name == 'within_blocks' else nonoverlapping
            for length in (longest,) if name == 'per_position' else lengths:
                windows = functools.partial(make, length=length)
                out.append((name, length, spread(targets, first, longest, windows, longest)))
        elif name == 'sliding':
            step = min(stride, longest)
            some = min(first, longest + (at_most - 1) * step)
            for length in lengths:
                windows = functools.partial(sliding, length=length, stride=min(stride, length))
                out.append((name, length, spread(targets, some, _LONG * longest, windows, step)))
        elif name == 'same_tokens':
            scored = min(stride, min(lengths))
            blocks = max(1, min(tokens // scored, at_most))
            shared = same_tokens(targets, lengths, scored=scored, blocks=blocks)
            out += [(name, length, windows) for length, windows in shared.items()]
    return out
