"""Plain windows of a token stream: random crops for training, contiguous ones for evaluation."""

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.task import Batch


def crops(stream: Int[np.ndarray, ' N'], offsets: Int[np.ndarray, ' B'], length: int) -> Batch:
    """Windows of `length` inputs that start at the given offsets; every target is scored.

    Example:
      >>> crops(np.arange(10), np.array([3]), 4)['targets'].tolist()
      [[4, 5, 6, 7]]
    """
    tokens = stream[offsets[:, None] + np.arange(length + 1)].astype(np.int32)
    return {
        'tokens': np.ascontiguousarray(tokens[:, :-1]),
        'targets': np.ascontiguousarray(tokens[:, 1:]),
        'loss_mask': np.ones((len(offsets), length), np.float32),
    }


def windows(stream: Int[np.ndarray, ' N'], numbers: Int[np.ndarray, ' B'], length: int) -> Batch:
    """The contiguous windows with these numbers, filled with zeros of loss mask 0 beyond the end.

    The windows 0 .. ceil((N - 1) / length) - 1 together score every token but the first once.
    """
    index = numbers[:, None] * length + np.arange(length)
    inside = index < len(stream) - 1
    index = np.where(inside, index, 0)
    return {
        'tokens': np.where(inside, stream[index], 0).astype(np.int32),
        'targets': np.where(inside, stream[index + 1], 0).astype(np.int32),
        'loss_mask': inside.astype(np.float32),
    }
