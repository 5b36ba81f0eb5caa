"""A few rows of an evaluation of classes, with the true ones and those that the model says."""

import dataclasses

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Int

from posenc_jax.lab.model.inputs import inputs_of, tokens_of
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.runs.problem import SEED
from posenc_jax.lab.tasks.class_task import ClassTask
from posenc_jax.lab.tasks.task import Batch

SHOWN = 8  # rows of a task length


@dataclasses.dataclass(frozen=True)
class Samples:
    """The first rows that are scored at a task length.

    Attributes:
      length: the task length.
      batch: what the model reads of these rows: 'image'; or 'vectors', with 'adjacency' where they
        are nodes of a graph, and 'valid' where rows have padding.
      truth, said: the numbers of the true classes and of the first choices of the model; K = 1, or
        the number of nodes where each node has a class.
      scored: which of them count, which is not those of padding.
      names: the name of the true class and of the first choice in each row, of classes of rows.
    """

    length: int
    batch: Batch
    truth: Int[np.ndarray, 'R K']
    said: Int[np.ndarray, 'R K']
    scored: Bool[np.ndarray, 'R K']
    names: tuple[tuple[str, str], ...]


def read_samples(
    model: Transformer,
    task: ClassTask,
    lengths: tuple[int, ...],
    *,
    samples: int,
    split: str,
    key: jax.Array | None = None,
) -> tuple[Samples, ...]:
    """The first rows of the examples of `evaluate_task`, at every length.

    Args:
      model: gives the logits of classes.
      task: of images, points or graphs.
      lengths, samples, split, key: as for `evaluate_task`.
    """
    graphdef, state = nnx.split(model)

    def read(state, row):
        one = jax.tree.map(lambda a: a[None], row)
        return nnx.merge(graphdef, state)(inputs_of(one), tokens_of(one), key=key)[0]

    # One at a time, since a few large rows at once may not fit.
    each = jax.jit(lambda state, rows: jax.lax.map(lambda row: read(state, row), rows))
    found = []
    for length in lengths:
        batch = task.dataset(length=length, batch_size=samples, seed=SEED, split=split)[0]
        first = {name: np.asarray(array[:SHOWN]) for name, array in batch.items()}
        truth, scored = first.pop('targets'), first.pop('loss_mask') > 0
        said = np.asarray(each(state, first)).argmax(-1)
        names = [(task.decode(a), task.decode(b)) for a, b in zip(truth, said)]
        found.append(Samples(length, first, truth, said, scored, tuple(names)))
    return tuple(found)
