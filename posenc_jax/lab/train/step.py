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
from ml_collections import ConfigDict

from posenc_jax.base.memory import bytes_of, device_memory, readable
from posenc_jax.lab.decoding.recurrence import read_segments
from posenc_jax.lab.model.field import Field, FieldConfig
from posenc_jax.lab.model.inputs import (
    auxiliary_loss,
    encoded_source,
    inputs_of,
    source_of,
    tokens_of,
)
from posenc_jax.lab.model.kinds import Model, ModelConfig, abstract_model, build_model
from posenc_jax.lab.model.losses import LOSSES, target_losses
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.runs.state import Params, TrainState, take_apart
from posenc_jax.lab.runs.tuned import trained
from posenc_jax.lab.train.field_sums import field_sums
from posenc_jax.lab.train.optimizer import decays, make_optimizer, schedule
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


def make_trainer(
    cfg: ModelConfig, train: ConfigDict, seed: int, mesh: Mesh, model: Model | None = None
) -> Trainer:
    """Builds the functions of a run on a mesh.

    Args:
      cfg: the config of the model.
      train: `config.train`.
      seed: `config.seed`; parameters and dropout derive from it.
      mesh: a mesh of all devices.
      model: the model of `cfg` as shapes; None builds it.

    Raises:
      ValueError: the mesh does not divide the rows or heads (the message has the numbers), or a
        device has too little memory.
    """
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
    model = abstract_model(cfg) if model is None else model
    graphdef, params, constants = take_apart(model)
    tuned = trained(model, train.tune)
    optimizer = make_optimizer(train, only(decays(model), tuned))

    def init(given: Params) -> TrainState:
        _, params, constants = take_apart(build_model(cfg, nnx.Rngs(jax.random.key(seed))))
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
    check_memory(abstract, cfg, train, mesh)
    step = functools.partial(train_step, graphdef, optimizer, train, seed, tuned)
    return Trainer(
        init=jax.jit(init, donate_argnums=0, out_shardings=shardings),
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole)),
        evaluate=jax.jit(functools.partial(eval_step, graphdef, train), out_shardings=whole),
        abstract=abstract,
        tuned=only(shapes.params, tuned),
        batch_sharding=NamedSharding(mesh, spec_of(_roles_of_batch(cfg))),
    )


def _roles_of_batch(cfg: ModelConfig) -> tuple[str, ...]:
    return ('batch',) if isinstance(cfg, FieldConfig) else ('batch', 'sequence')


def check_memory(abstract: TrainState, cfg: ModelConfig, train: ConfigDict, mesh: Mesh) -> None:
    """Raises ValueError if a device cannot hold its part of the state and the least that a step
    needs besides, which is the input of every layer and the logits. The message has both sizes.
    """
    part = lambda leaf: jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
    state = bytes_of(jax.tree.map(part, abstract))
    tokens = (
        train.batch
        // train.accumulate
        * (train.segment or cfg.train_len)
        // (mesh.size // mesh.shape['tensor'])
    )
    if isinstance(cfg, FieldConfig):
        step = 4 * tokens * (cfg.components + cfg.output_size)
    else:
        logits = 0 if cfg.pool else 4 * cfg.output_size
        step = tokens * (cfg.layers * cfg.width * jnp.dtype(cfg.dtype).itemsize + logits)
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


def losses_of(model: Model) -> Callable[[Array, Array], tuple[Array, Array]]:
    """The function from outputs and targets to losses and log-partitions of a model."""
    return LOSSES[model.cfg.predicts] if isinstance(model, Field) else target_losses


def read(
    model: Model,
    batch: DeviceBatch,
    train: ConfigDict,
    key: Array | None = None,
    step: Array | None = None,
) -> Float[Array, 'B *T V']:
    """Logits of a batch, [B, T, V], or [B, 1, V] for a class, in one pass or segment by segment
    with a memory (`train.segment`). With a key the training rule applies (dropout, random
    positions), without it the evaluation rule. A field gives the outputs of its points, [B, V];
    `step` tells it how far training is.
    """
    if isinstance(model, Field):
        progress = None if step is None else step / train.steps
        return model(batch['coords'], key=key, progress=progress)
    if not train.segment:
        training = key is not None
        source = encoded_source(model, source_of(batch), key, training)
        inputs, tok = inputs_of(batch), tokens_of(batch)
        return model(inputs, tok, key=key, train=training, source=source)
    return read_segments(
        model,
        batch['tokens'],
        segment=train.segment,
        length=train.memory,
        tok=tokens_of(batch),
        key=key,
    )


def train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    train: ConfigDict,
    seed: int,
    tuned: Params,
    state: TrainState,
    batch: DeviceBatch,
) -> tuple[TrainState, Metrics]:
    """One update of the `tuned` parameters. The loss is the mean over the scored targets of the
    whole batch, whether or not `train.accumulate` cuts the batch into parts. The terms that
    encodings add to it (`AuxiliaryLoss`) are means over these parts.

    Returns:
      The new state and the metrics: `loss` (nats per target, without the z-loss and the terms of
      encodings), `auxiliary_loss` (their sum, where there are some), `grad_norm` (before clipping),
      `param_norm` (of all parameters, after the update), `learning_rate`.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    scored = jnp.maximum(batch['loss_mask'].sum(dtype=jnp.float32), 1.0)

    def loss_of(params, part, key):
        model = nnx.merge(graphdef, _joined(params, state.params), state.constants)
        outputs = read(model, part, train, key, state.step)
        nll, log_partition = losses_of(model)(outputs, part['targets'])
        mean = lambda values: (values * part['loss_mask']).sum(dtype=jnp.float32) / scored
        objective, losses = mean(nll), {'loss': mean(nll)}
        if train.z_loss:
            objective += train.z_loss * mean(log_partition**2)
        if (
            isinstance(model, Transformer)
            and (term := auxiliary_loss(model, part, key)) is not None
        ):
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


def eval_step(
    graphdef: nnx.GraphDef, train: ConfigDict, state: TrainState, batch: DeviceBatch
) -> Metrics:
    """Sums over the scored targets of a batch, under the evaluation rule.

    Returns:
      `loss` in nats, number of `correct` targets, number of scored `targets`, `solved` rows (whose
      targets are all correct), and `rows` with targets. For a field see `field_sums`.
    """
    model = nnx.merge(graphdef, state.params, state.constants)
    logits = read(model, batch, train)
    nll, _ = losses_of(model)(logits, batch['targets'])
    scored = batch['loss_mask'] > 0
    if isinstance(model, Field):
        return field_sums(model.cfg, nll, logits, batch['targets'], scored)
    correct = (jnp.argmax(logits, axis=-1) == batch['targets']) & scored
    rows = scored.any(axis=1)
    return {
        'loss': jnp.where(scored, nll, 0).sum(),
        'correct': correct.sum(dtype=jnp.float32),
        'targets': scored.sum(dtype=jnp.float32),
        'solved': (rows & (correct == scored).all(axis=1)).sum(dtype=jnp.float32),
        'rows': rows.sum(dtype=jnp.float32),
    }
