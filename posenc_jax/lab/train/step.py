"""The state of training and the training step: pure functions of a pytree of plain dicts, compiled
once.

The model is split into structure and arrays once, and put together inside the compiled function. So
a call costs no more than a call of `jax.jit` on a dictionary.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from posenc_jax.base.memory import bytes_of, device_memory, readable
from posenc_jax.lab.model.parameters import decays
from posenc_jax.lab.runs.run import Run
from posenc_jax.lab.runs.state import Params, TrainState, take_apart
from posenc_jax.lab.train.optimizer import make_optimizer, schedule
from posenc_jax.layer.sharding import dict_shapes, nearest_multiple, spec_of

DeviceBatch = dict[str, Array]
Metrics = dict[str, Float[Array, '']]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The compiled functions of a run.

    Attributes:
      init: (given) -> TrainState, with every array in its place on the mesh. `given` are nested
        dicts of parameters that exist already ({} for none), which are donated. All other
        parameters are drawn at random.
      step: (state, batch) -> (state, metrics); the given state is donated.
      evaluate: (state, batch) -> sums over the scored targets.
      abstract: the TrainState as `ShapeDtypeStruct` with shardings.
      tuned: the shapes of the parameters that are trained.
      batch_sharding: the sharding of every array of a batch.
    """

    init: Callable[[Params], TrainState]
    step: Callable[[TrainState, DeviceBatch], tuple[TrainState, Metrics]]
    evaluate: Callable[[TrainState, DeviceBatch], Metrics]
    abstract: TrainState
    tuned: Params
    batch_sharding: NamedSharding


def make_trainer(run: Run, mesh: Mesh) -> Trainer:
    """Builds the functions of a run on a mesh of all devices.

    Raises:
      ValueError: the mesh does not divide the rows or heads (the message has the numbers), or a
        device has too little memory.
    """
    cfg, train = run.cfg, run.config.train
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    if train.batch % (train.accumulate * parts):
        raise ValueError(
            f'train.batch {train.batch} in {train.accumulate} accumulated parts cannot be cut '
            f'over data x fsdp = {parts}'
            f': it must be a multiple of {train.accumulate * parts}'
        )
    if cfg.train_len % (pieces := mesh.shape['sequence']) and not cfg.source_len:
        raise ValueError(
            f'the {cfg.train_len} tokens of a row cannot be cut over mesh.sequence={pieces}; use '
            f'a train.length whose rows have {nearest_multiple(cfg.train_len, pieces)} tokens, or '
            'mesh.sequence=1'
        )
    _, params, constants = take_apart(run.model)
    tuned = run.tuned
    optimizer = make_optimizer(train, only(decays(run.model), tuned))

    def init(given: Params) -> TrainState:
        params, constants = run.draw()
        params = _overlaid(nnx.to_pure_dict(params), given)
        opt_state = optimizer.init(only(params, tuned))
        return TrainState(jnp.zeros((), jnp.int32), params, nnx.to_pure_dict(constants), opt_state)

    whole = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(init, {})
    of_params, of_constants = (
        jax.tree.map(lambda a: a.sharding, dict_shapes(s, mesh)) for s in (params, constants)
    )
    of_optimizer = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        shapes.opt_state,
        only(of_params, tuned),
        transform_non_params=lambda _: whole,
    )
    shardings = TrainState(whole, of_params, of_constants, of_optimizer)
    place = lambda shape, sharding: jax.ShapeDtypeStruct(
        shape.shape, shape.dtype, sharding=sharding
    )
    abstract = jax.tree.map(place, shapes, shardings)
    check_memory(abstract, run, mesh)
    step = functools.partial(train_step, run, optimizer)
    return Trainer(
        init=jax.jit(init, donate_argnums=0, out_shardings=shardings),
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole)),
        evaluate=jax.jit(functools.partial(eval_step, run), out_shardings=whole),
        abstract=abstract,
        tuned=only(shapes.params, tuned),
        batch_sharding=NamedSharding(mesh, spec_of(run.problem.axes)),
    )


def check_memory(abstract: TrainState, run: Run, mesh: Mesh) -> None:
    """Raises ValueError if a device cannot hold its part of the state and the least that a step
    needs besides, which is the input of every layer and the logits. The message has both sizes.
    """
    part = lambda leaf: jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
    state = bytes_of(jax.tree.map(part, abstract))
    train = run.config.train
    tokens = (
        train.batch
        // train.accumulate
        * (train.segment or run.cfg.train_len)
        // (mesh.size // mesh.shape['tensor'])
    )
    step = run.problem.step_bytes(run.cfg, tokens)
    if state + step > (limit := device_memory(mesh.local_devices)):
        raise ValueError(
            f'the state of training would take {readable(state)} of a device, and a step at '
            f'least {readable(step)} more; it has '
            f'{readable(limit)}; make model.layers, model.width or train.batch smaller, '
            'train.accumulate larger, or cut the '
            'parameters over more devices with mesh.fsdp'
        )


def only(params: Params, tuned: Params) -> Params:
    """The parameters that are trained. The others are replaced by None, which JAX takes for an
    empty subtree.
    """
    return jax.tree.map(lambda leaf, is_tuned: leaf if is_tuned else None, params, tuned)


def _joined(part: Params, params: Params) -> Params:
    """`params` with the leaves that `part` has; where `part` has None, the leaf of `params`."""
    return jax.tree.map(
        lambda new, old: old if new is None else new, part, params, is_leaf=lambda x: x is None
    )


def _overlaid(params: Params, given: Params) -> Params:
    """`params` with the leaves of `given` in the places that it has."""
    both = lambda old, new: _overlaid(old, new) if isinstance(old, dict) else new
    return {
        key: both(value, given[key]) if key in given else value for key, value in params.items()
    }


def train_step(
    run: Run, optimizer: optax.GradientTransformation, state: TrainState, batch: DeviceBatch
) -> tuple[TrainState, Metrics]:
    """One update of the parameters that `run.tuned` names. The loss is the mean over the scored
    targets of the whole batch, whether or not `train.accumulate` cuts the batch into parts. The
    terms that encodings add to it (`AuxiliaryLoss`) are means over these parts.

    Returns:
      The new state and the metrics: `loss` (nats per target, without the z-loss and the terms of
      encodings), `auxiliary_loss` (their sum, where there are some), `grad_norm` (before clipping),
      `param_norm` (of all parameters, after the update), `learning_rate`.
    """
    problem, train, tuned = run.problem, run.config.train, run.tuned
    graphdef, *_ = take_apart(run.model)
    key = jax.random.fold_in(jax.random.key(run.config.seed), state.step)
    scored = jnp.maximum(batch['loss_mask'].sum(dtype=jnp.float32), 1.0)

    def loss_of(params, part, key):
        model = nnx.merge(graphdef, _joined(params, state.params), state.constants)
        outputs = problem.read(model, part, train, key, state.step)
        nll, log_partition = problem.losses(outputs, part['targets'])
        mean = lambda values: (values * part['loss_mask']).sum(dtype=jnp.float32) / scored
        objective, losses = mean(nll), {'loss': mean(nll)}
        if train.z_loss:
            objective += train.z_loss * mean(log_partition**2)
        if (term := problem.auxiliary_loss(model, part, key)) is not None:
            losses['auxiliary_loss'] = term / train.accumulate
            objective += losses['auxiliary_loss']
        return objective, losses

    grad_of = jax.grad(loss_of, has_aux=True)
    params = only(state.params, tuned)
    if train.accumulate == 1:
        grads, losses = grad_of(params, batch, key)
    else:
        # Part n takes every `accumulate`-th row, so that each device keeps its own rows.
        cut = lambda a: jnp.swapaxes(a.reshape(-1, train.accumulate, *a.shape[1:]), 0, 1)

        def add(total, numbered):
            number, part = numbered
            return jax.tree.map(
                jnp.add, total, grad_of(params, part, jax.random.fold_in(key, number))
            ), None

        parts = jax.tree.map(cut, batch)
        shapes = jax.eval_shape(grad_of, params, jax.tree.map(lambda a: a[0], parts), key)
        zero = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        (grads, losses), _ = jax.lax.scan(add, zero, (jnp.arange(train.accumulate), parts))

    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    params = _joined(optax.apply_updates(params, updates), state.params)
    metrics = {
        **losses,
        'grad_norm': optax.global_norm(grads),
        'param_norm': optax.global_norm(params),
        'learning_rate': schedule(train)(state.step),
    }
    return TrainState(state.step + 1, params, state.constants, opt_state), metrics


def eval_step(run: Run, state: TrainState, batch: DeviceBatch) -> Metrics:
    """Sums over the scored targets of a batch, under the evaluation rule; see `Problem.sums`."""
    model = nnx.merge(take_apart(run.model)[0], state.params, state.constants)
    outputs = run.problem.read(model, batch, run.config.train)
    losses, _ = run.problem.losses(outputs, batch['targets'])
    return run.problem.sums(losses, outputs, batch['targets'], batch['loss_mask'] > 0)
