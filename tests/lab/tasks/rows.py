"""What the tests of several tasks share: tasks of spec strings, and the rows of a batch."""

from collections.abc import Iterator

import numpy as np

from posenc_jax.lab.tasks import Task
from posenc_jax.language.spec import build, parse


def make(spec: str) -> Task:
    """The task of a spec string."""
    return build(parse(spec, ('task',)).nodes[0], {})


def sampled(spec: str, length, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of the task of a spec string."""
    return make(spec).sample(np.random.default_rng(seed), batch, length)


def rows(task: Task, length, batch: int = 200) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each row of a batch, the ids that are read and the last target, and the places of those
    that are scored.
    """
    data = task.sample(np.random.default_rng(0), batch, length)
    for tokens, targets, mask in zip(data['tokens'], data['targets'], data['loss_mask']):
        yield np.append(tokens[:1], targets), 1 + np.flatnonzero(mask)
