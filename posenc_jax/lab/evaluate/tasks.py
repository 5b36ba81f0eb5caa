"""Exact match of algorithmic tasks at several lengths.

Where a task predicts tokens at their own places, token accuracy is measured too.

One forward pass suffices. Under teacher forcing every argmax is right exactly when greedy decoding
gives the whole answer. This holds for causal models whose positions are not drawn anew at every
step, and whose tokens see the same keys in both. For other models answers can be decoded.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from posenc_jax.lab.evaluate.decoded import decoded_rows
from posenc_jax.lab.evaluate.generator import Generator
from posenc_jax.lab.evaluate.measurement import Measurement, exact_match, token_accuracy
from posenc_jax.lab.evaluate.scoring import Scorer
from posenc_jax.lab.model.inputs import inputs_of, source_of, tokens_of
from posenc_jax.lab.runs.problem import SEED
from posenc_jax.lab.tasks import Task


def evaluate_task(
    score: Scorer,
    task: Task,
    lengths: tuple[int, ...],
    *,
    samples: int,
    rows: Callable[[int], int],
    split: str = 'test',
    key: jax.Array | None = None,
    depths: tuple[float, ...] = (),
    new_tokens: Generator | None = None,
) -> list[Measurement]:
    """Measures exact match with its Wilson interval, token accuracy and likelihood, for each task
    length and depth.

    Every length (and depth) has one fixed set of examples, drawn from `split` with a fixed seed. No
    training seed draws from 'validation' or 'test'.

    Args:
      score: see `scoring.scorer`.
      task: the task.
      lengths: task lengths.
      samples: examples for each length and depth.
      rows: width -> how many rows of it are read at once.
      split: 'validation' or 'test'.
      key: draws random positions; None uses the evaluation rule of the encoding.
      depths: values for the field `depth` of the task, each evaluated at every length; () leaves
        the depth to the task.
      new_tokens: see `generator`; given if exact match and token accuracy are those of decoded
        answers. The likelihood is that of one pass.

    Raises:
      ValueError: `split` is 'train', the task does not have a length, or its answers cannot be
        decoded (`answers.check_decodable`).
    """
    if split not in ('validation', 'test'):
        raise ValueError(f"eval.split is {split!r}; tasks are evaluated on 'validation' or 'test'")
    results = []
    for length in lengths:
        for depth in map(float, depths) if depths else (None,):
            own = task if depth is None else dataclasses.replace(task, depth=depth)
            batch = own.dataset(length=length, batch_size=samples, seed=SEED, split=split)[0]
            at_once = rows(task.width(length))
            found = score_rows(score, batch, at_once, key)
            if new_tokens is not None:
                found = found[0], decoded_rows(new_tokens, batch, at_once), found[2]
            results.append(exact_match(length, *found, depth))
            if task.predicts == 'here':
                results.append(token_accuracy(length, *found, depth))
    return results


def score_rows(
    score: Scorer, batch: dict[str, np.ndarray], rows: int, key: jax.Array | None = None
):
    """Scores the examples of a batch, at most `rows` at a time; every call has the same shape.

    Returns:
      Negative log-likelihood, whether the target is the first choice, and whether it is scored,
      each [B, M] with M the largest number of scored targets of a row.
    """
    total = len(batch['targets'])
    rows = min(rows, total)
    mask = batch['loss_mask'] > 0
    at = np.argsort(~mask, axis=1, kind='stable')[:, : mask.sum(axis=1).max()].astype(np.int32)
    scored = []
    for first in range(0, total, rows):
        numbers = np.arange(first, first + rows)
        at_most = np.minimum(numbers, total - 1)
        chunk = {name: array[at_most] for name, array in batch.items()}
        own = None if key is None else jax.random.fold_in(key, first)
        read = inputs_of(chunk), chunk['targets'], tokens_of(chunk), own, at[at_most]
        source = source_of(chunk)
        scores = score(*read) if source is None else score(*read, source)
        scored.append(tuple(np.asarray(a)[numbers < total] for a in scores))
    nll, correct = zip(*scored)
    return np.concatenate(nll), np.concatenate(correct), np.take_along_axis(mask, at, axis=1)
