"""Rows of tokens of different lengths, and the batches in which a token predicts the next one."""

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.task import Batch


def join_ragged(
    pieces: list[tuple[Int[np.ndarray, '#B _'], Int[np.ndarray, ' B']]], width: int, fill: int
) -> tuple[Int[np.ndarray, 'B W'], Int[np.ndarray, ' B']]:
    """Writes pieces of different lengths one after the other into rows of a width, filled on the
    right.

    Args:
      pieces: pairs (values [B or 1, any], lengths [B]); of row b the first `lengths[b]` values are
        used.

    Returns:
      The rows, and the number of columns written in each row.
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


def next_token_batch(
    sequence: Int[np.ndarray, 'B N'],
    ends: Int[np.ndarray, ' B'],
    answer_start: Int[np.ndarray, ' B'],
    positions: Int[np.ndarray, 'B N *P'] | None = None,
) -> Batch:
    """Inputs and targets of right-padded sequences of `ends` tokens, with loss on the answers.

    The last prompt token predicts the first token of the answer. So in a row of N tokens whose
    answer begins at index a, the loss mask is 1 for a - 1 <= t <= N - 2. `positions` are those of
    the tokens of `sequence`.
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
    """The number of tokens of each row without padding, the last target included.

    Everything behind the last scored target counts as padding.
    """
    scored = batch['loss_mask'] > 0
    return scored.shape[1] - np.argmax(scored[:, ::-1], axis=1) + 1
