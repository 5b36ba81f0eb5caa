"""Coupled position ids: related tokens, such as digits of equal significance, share an id.

The ids are positions for an encoding that looks them up in a table. Every function gives the ids of
a whole sequence `$prompt=answer$`, from the lengths of its parts as they are written, zero padding
included. Both `$` and padding have id 0; all other ids are at least `start`, an id that the
function names. Lengths and `start` are ints, which give one sequence [L], or arrays [B], which give
[B, L]. `start` is 1 at test time. In training, `position_coupling_start` adds a random offset per
example to all non-zero ids.

`width` is the length of the result, by default that of the longest sequence. Every function raises
ValueError for a length or a start below 1, and for a `width` that is too small. None of them
differs from the paper.

Reference: Cho et al., "Position Coupling: Improving Length Generalization of Arithmetic
Transformers Using Task Structure", arXiv 2405.20671; official code HanseulJo/position-coupling.
"""

from typing import Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.sequences import join_ragged

Counts = int | Int[np.ndarray, ' B']
Ids = Literal['none', 'plain', 'coupled']


def coupled_addition_ids(
    a_digits: Counts,
    b_digits: Counts,
    answer_digits: Counts,
    *,
    start: Counts = 1,
    reverse_operands: bool = False,
    reverse_output: bool = True,
    width: int | None = None,
) -> Int[np.ndarray, '*B L']:
    """Ids of `$a+b=c$`: digits of equal significance are coupled across both operands and the sum.

    A digit of significance r (0 = least) gets start + 1 + r, wherever it is written; `+` and `=`
    get start. With the most significant answer digit first (`reverse_output=False`) `=` gets start
    + answer_digits + 1, so that ids fall by one along the answer. The largest id is start +
    answer_digits (+ 1 if not reversed).

    Args:
      reverse_operands, reverse_output: whether the least significant digit is written first.

    Example:
      >>> coupled_addition_ids(4, 4, 5).tolist()  # $0303+7737=04080$
      [0, 5, 4, 3, 2, 1, 5, 4, 3, 2, 1, 2, 3, 4, 5, 6, 0]
    """
    shape, (a, b, c, s) = _counts(
        a_digits=a_digits, b_digits=b_digits, answer_digits=answer_digits, start=start
    )
    answer = _rising(s + 1, c) if reverse_output else _falling(s + c, c)
    equals = s if reverse_output else s + c + 1
    operands = [_rising(s + 1, n) if reverse_operands else _falling(s + n, n) for n in (a, b)]
    pieces = [operands[0], _one(s), operands[1], _one(equals), answer]
    return _between_boundaries(pieces, shape, width)


def coupled_sum_ids(
    digits: Counts, operands: int, *, start: Counts = 1, width: int | None = None
) -> Int[np.ndarray, '*B L']:
    """Ids of `$a+b+...=s$` with `operands` numbers, which have as many digits as the sum, and the
    sum reversed: as in addition, of which the largest id is start + digits.
    """
    if operands < 1:
        raise ValueError(f'operands must be at least 1, got {operands}')
    shape, (m, s) = _counts(digits=digits, start=start)
    pieces = [piece for _ in range(operands) for piece in (_falling(s + m, m), _one(s))]
    return _between_boundaries([*pieces, _rising(s + 1, m)], shape, width)


def coupled_multiplication_ids(
    a_digits: Counts, b_digits: Counts, *, start: Counts = 1, width: int | None = None
) -> Int[np.ndarray, '*B L']:
    """Ids of `$a*b=c$` with the product reversed and padded to a_digits + b_digits digits.

    With e = start + a_digits + b_digits, `*` and `=` get e, and a digit of significance r gets
    e - 1 - r. The order is opposite to that of addition; the most significant digit of the product
    has start. The largest id is e, which needs a row in the table: with the official range of
    random starts, e can exceed `max_position` by one.
    """
    shape, (a, b, s) = _counts(a_digits=a_digits, b_digits=b_digits, start=start)
    e = s + a + b
    pieces = [_rising(e - a, a), _one(e), _rising(e - b, b), _one(e), _falling(e - 1, a + b)]
    return _between_boundaries(pieces, shape, width)


def coupled_copy_ids(
    symbols: Counts, *, start: Counts = 1, width: int | None = None
) -> Int[np.ndarray, '*B L']:
    """Ids of `$x=x$`: `=` gets start, the k-th symbol (from 0) of both copies start + 1 + k."""
    shape, (n, s) = _counts(symbols=symbols, start=start)
    return _between_boundaries([_rising(s + 1, n), _one(s), _rising(s + 1, n)], shape, width)


def coupled_reverse_ids(
    symbols: Counts, *, start: Counts = 1, width: int | None = None
) -> Int[np.ndarray, '*B L']:
    """Ids of `$x=reversed(x)$`: the k-th symbol (from 0) gets start + k in x and in the answer, and
    `=` gets start + symbols.
    """
    shape, (n, s) = _counts(symbols=symbols, start=start)
    return _between_boundaries([_rising(s, n), _one(s + n), _falling(s + n - 1, n)], shape, width)


def coupled_parity_ids(
    bits: Counts, *, start: Counts = 1, width: int | None = None
) -> Int[np.ndarray, '*B L']:
    """Ids of `$x=y$` with one bit y: all bits of x and the answer get start, `=` gets start + 1."""
    shape, (n, s) = _counts(bits=bits, start=start)
    return _between_boundaries([_level(s, n), _one(s + 1), _one(s)], shape, width)


def coupled_grid_ids(
    columns: Counts,
    rows: Counts,
    *,
    start: tuple[Counts, Counts] = (1, 1),
    width: int | None = None,
) -> Int[np.ndarray, '*B L 2']:
    """Ids of `$board=board$`: every cell has the id of its column and the id of its row.

    The cells of a board are in row-major order. Columns get start[0] + 1 .. start[0] + columns,
    rows start[1] + 1 .. start[1] + rows, and `=` gets both starts.
    """
    shape, (w, h, *starts) = _counts(
        columns=columns, rows=rows, column_start=start[0], row_start=start[1]
    )
    cell = np.arange((w * h).max())
    components = []
    for first, place in zip(starts, (cell % w[:, None], cell // w[:, None])):
        board = first[:, None] + 1 + place, w * h
        components.append(_between_boundaries([board, _one(first), board], shape, width))
    return np.stack(components, axis=-1)


def plain_ids(
    tokens: Counts, *, start: Counts = 1, width: int | None = None
) -> Int[np.ndarray, '*B L']:
    """Consecutive ids start, start + 1, ... of the tokens between the two `$`. With a random start
    this is the paper's baseline, an absolute encoding with random start.
    """
    shape, (n, s) = _counts(tokens=tokens, start=start)
    return _between_boundaries([_rising(s, n)], shape, width)


def _counts(**named):
    arrays = np.broadcast_arrays(*(np.asarray(value) for value in named.values()))
    for name, array in zip(named, arrays):
        if array.dtype.kind not in 'iu' or array.ndim > 1 or (array < 1).any():
            raise ValueError(
                f'{name} must be an int or an array [B] of ints, all at least 1, got '
                f'{named[name]!r}'
            )
    return arrays[0].shape, [array.reshape(-1).astype(np.int64) for array in arrays]


def _rising(first, count):
    return first[:, None] + np.arange(count.max()), count


def _falling(first, count):
    return first[:, None] - np.arange(count.max()), count


def _level(value, count):
    return np.broadcast_to(value[:, None], (len(value), count.max())), count


def _one(value):
    return _level(value, np.ones_like(value))


def _between_boundaries(pieces, shape, width):
    boundary = _one(np.zeros_like(pieces[0][1]))
    pieces = [boundary, *pieces, boundary]
    longest = int(sum(count for _, count in pieces).max())
    if width is not None and width < longest:
        raise ValueError(f'width {width} is less than the longest sequence, {longest} tokens')
    ids, _ = join_ragged(pieces, longest if width is None else width, 0)
    return ids.reshape(*shape, ids.shape[1])
