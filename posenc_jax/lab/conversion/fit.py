"""Trains a copy of a model to agree with a teacher, in one compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.lab.model.parameters import decays
from posenc_jax.lab.model.transformer import Transformer


def fit(
    student: Transformer,
    teacher: Transformer,
    loss: Callable,
    batches: Any,
    optimizer: optax.GradientTransformation,
) -> tuple[Transformer, Float[Array, 'steps'], Any]:
    """Updates all parameters of a copy of the student once for each batch.

    Args:
      student, teacher: both stay as they are, and may be one model.
      loss: `loss(student, teacher, batch) -> number, found`.
      batches: a pytree of arrays whose leading axis is that of the steps.
      optimizer: of the parameters of the student.

    Returns:
      The trained copy, and the loss and `found` before each update.
    """
    graphdef, params, rest = nnx.split(student, nnx.Param, ...)
    teaching, knowledge = nnx.split(teacher)

    @jax.jit
    def run(params, rest, knowledge, batches):
        def step(carry, batch):
            params, state = carry

            def of_params(params):
                models = nnx.merge(graphdef, params, rest), nnx.merge(teaching, knowledge)
                return loss(*models, batch)

            (value, found), gradient = jax.value_and_grad(of_params, has_aux=True)(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), (value, found)

        return jax.lax.scan(step, (params, optimizer.init(params)), batches)

    (params, _), (losses, found) = run(params, rest, knowledge, batches)
    return nnx.merge(graphdef, params, rest), losses, found


def decayed(model: nnx.Module) -> nnx.State:
    """The parameters that weight decay applies to (`decays`), as a mask of the tree that `fit`
    gives to its optimizer.
    """
    mask = jax.tree.map(lambda a: a, nnx.state(model, nnx.Param))  # the model keeps its own
    nnx.replace_by_pure_dict(mask, decays(model))
    return mask
