"""Which tensor of a public checkpoint is which variable of a `Transformer`, and how the stored
layout is reordered. All architectures use this module.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from posenc_jax.lab.model.config import TransformerConfig

Change = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One variable of the model and the tensor that it comes from.

    Attributes:
      name: name of the tensor, with '{}' for the number of the layer.
      shape: shape of the tensor in the checkpoint.
      change: function from the stored layout to ours. It only selects and reorders numbers, so
        export can find its inverse by applying it to indices.
      plus, factor: the variable is `factor (plus + stored)`, in float32.
    """

    name: str
    shape: tuple[int, ...]
    change: Change
    plus: float = 0.0
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The architecture of a checkpoint as a `Transformer`.

    Attributes:
      cfg: the config of the `Transformer`.
      leaves: name of a variable, without the number of its block ('embedding', 'attention.w_q') ->
        its tensor.
      ignored: names of tensors that need not be read, with '{}' for the number of the layer.
    """

    cfg: TransformerConfig
    leaves: Mapping[str, Leaf]
    ignored: tuple[str, ...] = ()


def same(a: np.ndarray) -> np.ndarray:
    return a


def turned(a: np.ndarray) -> np.ndarray:
    return a.T


def into_heads(width, heads, head_dim) -> Change:
    """From a matrix [heads * head_dim, width] to ours, [width, heads, head_dim]."""
    return lambda w: w.T.reshape(width, heads, head_dim)


def out_of_heads(width, heads, head_dim) -> Change:
    """From a matrix [width, heads * head_dim] to ours, [heads, head_dim, width]."""
    return lambda w: w.T.reshape(heads, head_dim, width)


def per_head(heads, head_dim) -> Change:
    return lambda b: b.reshape(heads, head_dim)


def with_output(
    config,
    cfg: TransformerConfig,
    leaves: dict[str, Leaf],
    *ignored: str,
    name: str = 'lm_head.weight',
    tied: bool = True,
) -> Architecture:
    """The architecture with its output: the embedding table if it is tied, else the tensor `name`.

    Args:
      config: the config of the checkpoint; `tie_word_embeddings` says whether the output is tied.
      cfg, leaves: as for `Architecture`, without the output.
      ignored: as for `Architecture`.
      name: name of the output tensor; it is ignored if the output is tied.
      tied: whether the output is tied where the config does not say.
    """
    said = config.get('tie_word_embeddings')
    cfg = dataclasses.replace(cfg, tie=tied if said is None else bool(said))
    if cfg.tie:
        return Architecture(cfg, leaves, (*ignored, name))
    return Architecture(
        cfg, {**leaves, 'output': Leaf(name, (cfg.vocab_size, cfg.width), turned)}, ignored
    )


def joined_heads(heads, head_dim, part) -> tuple[Change, Change]:
    """The changes that take query, key or value (`part` 0, 1, 2) out of a joined matrix and out of
    a joined bias, whose rows are grouped as [heads, 3, head_dim].
    """
    rows = lambda w: w.reshape(heads, 3, head_dim, *w.shape[1:])[:, part]
    return lambda w: np.moveaxis(rows(w), -1, 0), rows
