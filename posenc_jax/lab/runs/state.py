"""The state of training, which is what a checkpoint keeps."""

import dataclasses
from typing import Any

import jax
import optax
from flax import nnx
from jaxtyping import Array, Int

from posenc_jax.lab.model.kinds import Model

Params = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a training run. It holds no random state: the key of a step is derived from the
    seed and `step`.

    Attributes:
      step: number of updates so far.
      params: parameters of the model, as nested dicts of arrays. `train.tune` may freeze some.
      constants: all other variables of the model, likewise; training does not change them.
      opt_state: state of the optimizer, from optax.
    """

    step: Int[Array, '']
    params: Params
    constants: Params
    opt_state: optax.OptState


def sizes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """Dotted name -> shape of every leaf of nested dicts of arrays.

    Example:
      >>> sizes_of({'norm': {'scale': jax.ShapeDtypeStruct((8,), 'float32')}})
      {'norm.scale': (8,)}
    """
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator='.')
    return {name(path): tuple(a.shape) for path, a in jax.tree_util.tree_leaves_with_path(tree)}


def take_apart(model: Model) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits a model into its structure, its parameters, and its other variables."""
    structure, trained, others = nnx.split(model, nnx.Param, ...)
    return structure, trained, others
