"""What training changes, and what a checkpoint keeps."""

import dataclasses
from typing import Any

import jax
import optax
from flax import nnx
from jaxtyping import Array, Int

from posenc_jax.model.transformer import Transformer

Params = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes. Randomness is not in it: the key of a step is derived from the
    seed and `step`.

    Attributes:
      step: updates done.
      params: trained parameters, nested dicts of arrays.
      constants: variables of encodings that are not trained, likewise.
      opt_state: of optax.
    """

    step: Int[Array, '']
    params: Params
    constants: Params
    opt_state: optax.OptState


def take_apart(model: Transformer) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Structure, trained parameters, and the other variables."""
    structure, trained, others = nnx.split(model, nnx.Param, ...)
    return structure, trained, others
