"""A few images of an evaluation with their true classes and those that the model says."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from posenc_jax.model.transformer import Transformer
from posenc_jax.run.job import SEED
from posenc_jax.tasks import Task

SHOWN = 8  # images of a task length


@dataclasses.dataclass(frozen=True)
class ImageSamples:
    """The first images that are scored at a task length.

    Attributes:
      length: the task length.
      images: as the model reads them.
      truth, said: the names of the true classes, and of the first choices of the model.
    """

    length: int
    images: Float[np.ndarray, 'N rows columns C']
    truth: tuple[str, ...]
    said: tuple[str, ...]


def read_samples(
    model: Transformer,
    task: Task,
    lengths: tuple[int, ...],
    *,
    samples: int,
    rows: Callable[[int], int],
    split: str,
    key: jax.Array | None = None,
) -> tuple[ImageSamples, ...]:
    """The first images of the examples of `evaluate_task`, at every length.

    Args:
      model: gives the logits of classes for images.
      task: of images.
      lengths, samples, rows, split, key: as for `evaluate_task`.
    """
    graphdef, state = nnx.split(model)
    read = jax.jit(lambda state, images: nnx.merge(graphdef, state)(images, key=key))
    found = []
    for length in lengths:
        batch = task.dataset(length=length, batch_size=samples, seed=SEED, split=split)[0]
        images = batch['image'][: min(SHOWN, rows(task.width(length)))]
        said = np.asarray(read(state, images)).argmax(-1)
        names = (
            tuple(task.decode(classes) for classes in numbers[: len(images)])
            for numbers in (batch['targets'], said)
        )
        found.append(ImageSamples(length, images, *names))
    return tuple(found)
