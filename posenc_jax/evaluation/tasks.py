"""Exact match of algorithmic tasks at several lengths.

One forward pass: under teacher forcing every argmax is right exactly when greedy decoding gives the whole answer (in
causal models, with positions that are not drawn anew at every step).
"""

import zlib
from collections.abc import Callable

import jax
import numpy as np

from posenc_jax.core.encoding import Tokens
from posenc_jax.evaluation.measurement import Measurement, exact_match
from posenc_jax.evaluation.scoring import Scorer
from posenc_jax.tasks import Task

SEED = zlib.crc32(b'eval')


def evaluate_task(
    score: Scorer,
    task: Task,
    lengths: tuple[int, ...],
    *,
    samples: int,
    rows: Callable[[int], int],
    split: str = 'test',
    key: jax.Array | None = None,
) -> list[Measurement]:
    """Exact match with its Wilson interval, token accuracy and likelihood for each task length.

    Every length has one fixed set of examples, drawn from `split` with a fixed seed; no training seed draws from
    'validation' or 'test'.

    Args:
      score: see `scoring.scorer`.
      task: what is asked.
      lengths: task lengths.
      samples: examples for each length.
      rows: how many rows of a width are read at once.
      split: 'validation' or 'test'.
      key: draws random positions; None is the evaluation rule.

    Raises:
      ValueError: training data asked for, or a length the task does not have.
    """
    if split not in ('validation', 'test'):
        raise ValueError(f"eval.split is {split!r}; tasks are evaluated on 'validation' or 'test'")
    results = []
    for length in lengths:
        batch = task.dataset(length=length, batch_size=samples, seed=SEED, split=split)[0]
        nll, correct = score_rows(score, batch, rows(batch['tokens'].shape[1]), key)
        results.append(exact_match(length, nll, correct, batch['loss_mask'] > 0))
    return results


def score_rows(score: Scorer, batch: dict[str, np.ndarray], rows: int, key: jax.Array | None = None):
    """nll and correctness [B, T] of a batch, `rows` rows at a time; every call has the same shape."""
    total, length = batch['tokens'].shape
    parts = []
    for first in range(0, total, rows):
        numbers = np.arange(first, first + rows)
        piece = {name: array[np.minimum(numbers, total - 1)] for name, array in batch.items()}
        tok = Tokens.of(length=length, positions=piece.get('positions'), segment=piece.get('segment'))
        own = None if key is None else jax.random.fold_in(key, first)
        scores = score(piece['tokens'], piece['targets'], tok, own)
        parts.append(tuple(np.asarray(a)[numbers < total] for a in scores))
    nll, correct = zip(*parts)
    return np.concatenate(nll), np.concatenate(correct)
