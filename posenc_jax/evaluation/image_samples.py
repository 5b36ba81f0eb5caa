"""A few images of an evaluation with their true classes and those that the model says."""

import dataclasses

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
    split: str,
    key: jax.Array | None = None,
) -> tuple[ImageSamples, ...]:
    """The first images of the examples of `evaluate_task`, at every length.

    Args:
      model: gives the logits of classes for images.
      task: of images.
      lengths, samples, split, key: as for `evaluate_task`.
    """
    graphdef, state = nnx.split(model)
    read = lambda state, image: nnx.merge(graphdef, state)(image[None], key=key)[0]
    # One at a time, since a few large images at once may not fit.
    each = jax.jit(lambda state, images: jax.lax.map(lambda a: read(state, a), images))
    found = []
    for length in lengths:
        batch = task.dataset(length=length, batch_size=samples, seed=SEED, split=split)[0]
        images = batch['image'][:SHOWN]
        said = np.asarray(each(state, images)).argmax(-1)
        names = (
            tuple(task.decode(classes) for classes in numbers[: len(images)])
            for numbers in (batch['targets'], said)
        )
        found.append(ImageSamples(length, images, *names))
    return tuple(found)
