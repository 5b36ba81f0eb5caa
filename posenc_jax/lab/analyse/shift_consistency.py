"""Shift consistency: how often a model gives two shifts of an image the same class."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


class ShiftConsistency(NamedTuple):
    """Attributes:
    share: of the images whose two shifts get the same class, 0 to 1.
    largest: the largest difference of a logit between the two shifts of an image.
    """

    share: float
    largest: float


def shift_consistency(
    model: nnx.Module,
    images: Float[Array, 'M rows columns C'],
    key: Array,
    *,
    shifts: int = 15,
    batch: int = 64,
) -> ShiftConsistency:
    """The share of images whose class does not change between two shifts, and how far the logits
    differ, as arXiv 2306.07470 measures them.

    Each image is shifted twice, as a torus, by rows and columns that are drawn independently and
    uniformly from 0 .. shifts - 1.

    Args:
      model: maps images [B, rows, columns, C] to logits [B, 1, classes].
      images: M of them.
      key: draws the shifts.
      shifts: how many shifts there are along an axis.
      batch: images that are read at a time.

    Raises:
      ValueError: images of another shape, none of them, or fewer than one shift or image at a time.

    Example:
      >>> from posenc_jax.lab.model.transformer import Transformer, TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=0, train_len=4, layers=1, width=8, heads=2, kind='encoder', pool='mean',
      ...     channels=1, patch=2, output_size=3, encoding='polyphase_anchor()',
      ... )  # fmt: skip
      >>> images = jax.random.normal(jax.random.key(0), (5, 4, 4, 1))
      >>> shift_consistency(Transformer(cfg, rngs=nnx.Rngs(0)), images, jax.random.key(1)).share
      1.0
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f'expected images [M, rows, columns, C], at least one, got {images.shape}')
    if shifts < 1 or batch < 1:
        raise ValueError(f'shifts and batch must be at least 1, got {shifts} and {batch}')
    by = jax.random.randint(key, (2, len(images), 2), 0, shifts)
    graphdef, state = nnx.split(model)

    @jax.jit
    def logits(state: Any, images, by):
        rolled = jax.vmap(lambda image, by: jnp.roll(image, (by[0], by[1]), (0, 1)))(images, by)
        return nnx.merge(graphdef, state)(rolled)[:, 0]

    batch = min(batch, len(images))
    same, largest = [], 0.0
    for start in range(0, len(images), batch):
        # The last piece is filled up with images of its own end, so that one program serves all.
        at = np.minimum(np.arange(start, start + batch), len(images) - 1)
        first, second = (np.asarray(logits(state, images[at], shift[at])) for shift in by)
        count = min(batch, len(images) - start)
        same.append((first.argmax(-1) == second.argmax(-1))[:count])
        largest = max(largest, float(np.abs(first - second).max()))
    return ShiftConsistency(float(np.concatenate(same).mean()), largest)
