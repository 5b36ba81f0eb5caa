"""Plain windows of a token stream: random crops for training, contiguous ones for evaluation."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.task import Batch

# Indices into a stream -> the positions of these tokens; None for plain positions
Places = Callable[[Int[np.ndarray, 'B L']], Int[np.ndarray, 'B L *P']] | None


def crops(
    stream: Int[np.ndarray, ' N'],
    offsets: Int[np.ndarray, ' B'],
    length: int,
    places: Places = None,
) -> Batch:
    """Windows of `length` inputs that start at the given offsets; every target is scored."""
    return _batch(stream, offsets[:, None] + np.arange(length), places)


def windows(
    stream: Int[np.ndarray, ' N'],
    numbers: Int[np.ndarray, ' B'],
    length: int,
    places: Places = None,
) -> Batch:
    """The contiguous windows with these numbers, filled with zeros of loss mask 0 beyond the end.

    The windows 0 .. ceil((N - 1) / length) - 1 together score every token but the first once.
    """
    return _batch(stream, numbers[:, None] * length + np.arange(length), places)


def _batch(stream, index, places):
    inside = index < len(stream) - 1
    index = np.where(inside, index, 0)
    batch = {
        'tokens': np.where(inside, stream[index], 0).astype(np.int32),
        'targets': np.where(inside, stream[index + 1], 0).astype(np.int32),
        'loss_mask': inside.astype(np.float32),
    }
    return batch if places is None else {**batch, 'positions': places(index)}
