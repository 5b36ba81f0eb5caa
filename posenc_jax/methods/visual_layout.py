"""Sequences of text, pictures and videos as data, from which encodings make positions."""

import math
import numbers

import numpy as np
from jaxtyping import Num

from posenc_jax.protocol.errors import is_size, quoted
from posenc_jax.protocol.tokens import Tokens

Segment = int | tuple[int, int] | tuple[int, int, int] | tuple[int, int, int, float]
# What `visual_layout` says of a token; a seventh component is the seconds of a frame.
COMPONENTS: tuple[str, ...] = ('count', 'frame', 'row', 'column', 'rows', 'columns')
MOST = 2**24  # whole numbers that float32 holds


def visual_layout(*segments: Segment) -> Num[np.ndarray, 'L P']:
    """What each token of a sequence is: (count, frame, row, column, rows, columns).

    The count is 0, 1, ... over all tokens, and the other components are 0 for text. A token of a
    picture or a video has its cell, which counts from 0, and the size of the picture; cells are
    written row by row, and one frame after the other. Start and end markers are text. If a segment
    has seconds, a seventh component is the seconds of a frame of the token's video, 0 where it has
    none, and all numbers are float32; without seconds they are integers.

    Args:
      segments: n for n tokens of text, (R, C) for a picture, (F, R, C) for a video, and
        (F, R, C, seconds) for a video in which a frame lasts so long.

    Raises:
      ValueError: no segments, a segment of another form or without tokens, seconds that are not
        positive, or more than 2**24 tokens.

    Example:
      >>> visual_layout(1, (1, 2), 1).tolist()
      [[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 2], [2, 0, 0, 1, 1, 2], [3, 0, 0, 0, 0, 0]]
    """
    if not segments:
        raise ValueError('visual_layout needs at least one segment, such as 5 tokens of text')
    sizes = [_size(segment) for segment in segments]
    total = sum(math.prod(size) for size, _ in sizes)
    if total > MOST:
        raise ValueError(f'visual_layout: at most {MOST} tokens, got {total}')
    timed = any(seconds for _, seconds in sizes)
    parts = [_cells(size, seconds) for size, seconds in sizes]
    rest = np.concatenate(parts)[:, : None if timed else -1]
    layout = np.concatenate([np.arange(total)[:, None], rest], axis=1)
    return layout.astype(np.float32 if timed else np.int32)


def visual_tokens(*segments: Segment) -> Tokens:
    """One row of tokens with the positions `visual_layout(*segments)`.

    Example:
      >>> visual_tokens(2, (2, 3, 4, 0.5), 1).pos.shape
      (1, 27, 7)
    """
    return Tokens.of(positions=visual_layout(*segments)[None])


def _size(segment: Segment) -> tuple[tuple[int, ...], float]:
    """The size of a segment, with one axis for text, and the seconds of a frame, 0 for none."""
    if isinstance(segment, numbers.Integral):
        if not is_size(segment):
            raise ValueError(f'a text has at least one token, got {quoted(segment)}')
        return (int(segment),), 0.0
    if not isinstance(segment, tuple | list) or not 2 <= len(segment) <= 4:
        raise ValueError(
            'a segment is n for text, (rows, columns) for a picture, or (frames, rows, columns) '
            f'for a video, with its seconds per frame if they are known, got {quoted(segment)}'
        )
    size = tuple(segment[:3])
    if not all(map(is_size, size)):
        what = 'a picture has' if len(size) == 2 else 'a video has at least one frame and'
        raise ValueError(f'{what} at least one row and one column, got {quoted(segment)}')
    seconds = segment[3] if len(segment) == 4 else 0.0
    known = isinstance(seconds, numbers.Real) and not isinstance(seconds, bool)
    if len(segment) == 4 and not (known and 0 < seconds <= np.finfo(np.float32).max):
        raise ValueError(f'the seconds of a frame must be positive and finite, got {seconds!r}')
    return tuple(map(int, size)), float(seconds)


def _cells(size: tuple[int, ...], seconds: float) -> np.ndarray:
    """Frame, row, column, rows, columns and seconds of the tokens of a segment."""
    if len(size) == 1:
        return np.zeros((size[0], 6))
    frames, rows, columns = (1, *size)[-3:]
    frame, cell = np.divmod(np.arange(frames * rows * columns), rows * columns)
    row, column = np.divmod(cell, columns)
    told = np.broadcast_arrays(frame, row, column, rows, columns, np.float64(seconds))
    return np.stack(told, axis=1)
