"""Trains a model of a small program: a loss of the model and a batch, one pass over the batches."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

Model = TypeVar('Model', bound=nnx.Module)


def fitted(
    model: Model,
    loss: Callable[[Model, Any], jax.Array],
    batches: Iterable[Any],
    *,
    steps: int,
    rate: float = 2e-3,
    optimizer: optax.GradientTransformation | None = None,
) -> Model:
    """A copy of the model after one update for each batch.

    Args:
      model: what is trained, all of its parameters.
      loss: of the model and a batch.
      batches: trees of arrays of the same shapes.
      steps: how many batches there are.
      rate: the largest learning rate of the usual optimizer, which is AdamW; its rate rises for a
        tenth of the steps, and falls as a cosine.
      optimizer: another optimizer.
    """
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optimizer or optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            optax.warmup_cosine_decay_schedule(0, rate, steps // 10, steps),
            b2=0.98,
            weight_decay=0.01,
        ),
    )

    @jax.jit
    def step(params, state, batch):
        grads = jax.grad(lambda p: loss(nnx.merge(graphdef, p, rest), batch))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for batch in batches:
        params, state = step(params, state, jax.tree.map(jnp.asarray, batch))
    return nnx.merge(graphdef, params, rest)
