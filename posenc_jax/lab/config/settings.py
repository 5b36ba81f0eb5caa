"""Checks that a model reads what a task has. No checkpoint is read and no device is used."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from posenc_jax.base.memory import main_memory, readable
from posenc_jax.base.targets import made_for
from posenc_jax.lab.model.inputs import (
    auxiliary_loss,
    encoded_source,
    inputs_of,
    source_of,
    tokens_of,
)
from posenc_jax.lab.model.stack import LayerStack
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.tasks import Task
from posenc_jax.lab.tasks.task import batch_rng, check_sample
from posenc_jax.protocol.checks import about
from posenc_jax.protocol.composite import name_of
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens

MAX_WIDTH = 2**22  # tokens of a row; a row is drawn, read and scored as a whole
# How many examples are drawn to check their ids. The largest id may depend on the draw, e.g. where
# a sum has a carry.
_TRIED = 64


def width_of(task: Task, length: int | tuple[int, int]) -> int:
    """The width T of a batch of a task.

    Args:
      task: the task.
      length: the task length, or the range (lowest, highest) of lengths.

    Raises:
      ValueError: the task does not have this length, or its rows would be longer than `MAX_WIDTH`.
    """
    width = task.width(length)
    if width > MAX_WIDTH:
        longest = f'of length {length} has rows of {width} tokens, {readable(12 * width)} each'
        raise ValueError(f'an example {longest}; a row holds at most {MAX_WIDTH} tokens')
    return width


def check_memory(what: str, rows: int, width: int, token: int = 12) -> None:
    """Raises SpecError if rows of tokens would not fit in main memory.

    Args:
      what: the field that sets the number of rows, e.g. 'train.batch=8 rows of', for the message.
      rows: how many rows are held.
      width: tokens per row.
      token: bytes per token; 12 are its id, its target, and whether it is scored.
    """
    if (needed := token * rows * width) > (memory := main_memory()):
        raise SpecError(
            f'{what} {width} tokens would take {readable(needed)}, and this machine has '
            f'{readable(memory)} of main memory, '
            f'for at most {memory // (token * width)} of them'
        )


def lengths_of(config: ConfigDict) -> tuple[int, ...]:
    """`eval.lengths` once each; by default train.length times 1, 2, 4 and, but for fields, 8."""
    times = (1, 2, 4, 8)[: 3 if config.model.kind == 'field' else 4]
    return tuple(dict.fromkeys(config.eval.lengths or (n * config.train.length for n in times)))


def check_kind(model: Transformer, task: Task, spec: str) -> None:
    """Checks that a model of this kind can do a task: that it reads a source if there is one, and
    that no query sees the next token where the task asks to predict it.

    Args:
      model: the model as shapes.
      task: the task.
      spec: its spec string, for the message.

    Raises:
      SpecError: it cannot; the message names what stands against it and what to use.
    """
    kind = model.cfg.kind
    if task.both_sides and model.cfg.causal:
        raise SpecError(
            f'model.kind is {kind!r}, which sees earlier tokens alone; {spec} hides tokens that '
            "are to be told from both sides; use 'encoder'"
        )
    if bool(model.cfg.pool) != (task.predicts == 'class'):
        found = 'the class of a row' if model.cfg.pool else 'tokens'
        raise SpecError(
            f'the model was trained to predict {found}, but {spec} asks for '
            f'{"tokens" if model.cfg.pool else "the class of a row"}; use a task like its own'
        )
    if task.predicts != 'next':
        return
    if not model.cfg.causal:
        raise SpecError(
            f'model.kind is {kind!r}: it sees the next tokens, which {spec} asks to predict; use '
            "'decoder'"
        )
    for part in model.encodings:
        if 'sees_later' in part.traits:
            raise SpecError(
                f'{name_of(part)} lets queries see later tokens, which {spec} asks to predict; '
                'leave it out or use causal()'
            )


def check_read(
    model: Transformer,
    task: Task,
    length: int,
    width: int,
    *,
    train: bool = False,
    split: str = 'test',
) -> None:
    """Checks that a model can read what a task has at a length.

    Args:
      model: the model as shapes.
      task: the task.
      length: the task length.
      width: tokens of a row at this length; not used where vectors or images are read.
      train, split: whether the training rule applies; see `check_ids`.

    Raises:
      ValueError: an id is beyond a table, or a size does not fit the model.
    """
    if task.channels:
        _check_batch(model, task.sample(batch_rng(0, 'test', 0), 2, length), train=train)
        return
    supplied = check_ids(model, task, length, training=train, split=split)
    components = None if supplied is None else supplied.shape[2:]
    check_call(model, width, components, source_shape(model, task, length), train=train)


def check_segments(model: Transformer) -> None:
    """Checks that every layer can read a text in segments with a memory (`train.segment`).

    Raises:
      SpecError: a layer cannot, an encoding assigns positions to whole texts, or the model predicts
        the class of a row.
    """
    if placing := [name_of(part) for part in model.shared if part.opens('place')]:
        raise SpecError(
            f'train.segment must be 0: {placing[0]} assigns positions to whole texts, which '
            'segments read in parts'
        )
    if model.cfg.pool:
        raise SpecError('train.segment reads a row in parts, but its class is predicted as a whole')
    for layer_type, block in enumerate(model.blocks):
        try:
            model.attention(layer_type, block)
        except ValueError as error:
            raise SpecError(f'train.segment must be 0: {error}') from None


def check_ids(
    model: Transformer, task: Any, length: int, *, training: bool = False, split: str = 'test'
) -> np.ndarray | None:
    """Gives the position ids that a task supplies at a length to `model.place`, which raises if an
    id is beyond a table.

    Args:
      model: the model as shapes.
      task: the task.
      length: the task length.
      training: whether ids of training are checked too, by the training rule. Most tasks on text
        supply ids in training alone.
      split: of texts that supply ids in evaluation too, the split whose first window is checked.

    Returns:
      The ids that were checked last; None if the task supplies none.
    """
    supplied: list[tuple[str, dict[str, Any]]] = []
    if task.supplies_positions:
        splits = ['train'] * training + ['test'] * (not task.is_language)
        supplied = [(name, _examples(task, length, name)) for name in splits]
    if task.is_language and (places := task.places(split)) is not None:
        first = np.arange(length)[None]
        supplied.append((split, {'tokens': task.tokens(split)[first], 'positions': places(first)}))
    for name, batch in supplied:
        _place(model, batch['positions'], batch['tokens'], draws=training and name == 'train')
    return supplied[-1][1]['positions'] if supplied else None


def source_shape(
    model: Transformer, task: Task, length: Any
) -> tuple[int, tuple[int, ...] | None] | None:
    """The argument `source` of `check_call` for a task. The position ids that the task supplies for
    its source are given to the encoder, which raises if an id is beyond a table.
    """
    if not task.source_size:
        return None
    width, batch = task.source_width(length), _examples(task, length, 'test')
    if model.encoder is None or (pos := batch.get('source_positions')) is None:
        return width, None
    check_sample(task, batch)
    with about(f'the source of {pos.shape[1]} tokens'):
        _place(model.encoder, pos, batch['source'])
    return width, pos.shape[2:]


def _examples(task: Task, length: Any, split: str) -> dict[str, Any]:
    """Some examples of a task, as many as are drawn to check their ids."""
    rows = max(1, min(_TRIED, MAX_WIDTH // task.width(length)))
    return task.sample(batch_rng(0, split, 0), rows, length)


def _place(model: LayerStack, pos: Any, ids: Any, *, draws: bool = False) -> None:
    """Calls `model.place`, with a key if it `draws`, on arrays of NumPy. The variables of the model
    are traced, so no device computes, and the arrays stay concrete numbers that `place` can check.
    """
    index: Any = np.arange(pos.shape[1], dtype=np.int32)[None]
    tok, (graphdef, state) = Tokens(index, pos, rank=index), nnx.split(model)

    def place(state):
        key = jax.random.key(0) if draws else None
        nnx.merge(graphdef, state).place(tok, ids, key=key)

    jax.eval_shape(place, state)


def check_call(
    model: Transformer,
    width: int,
    components: tuple[int, ...] | None = None,
    source: tuple[int, tuple[int, ...] | None] | None = None,
    *,
    train: bool = False,
) -> None:
    """Traces a call of the model on two rows without computing anything. A model that cannot be
    called, or an encoding that does not reach so far, raises.

    Args:
      model: the model as shapes.
      width: tokens of a row.
      components: trailing dimensions of the positions that the task supplies; None if it supplies
        none.
      source: the same two for the source; None if there is none.
      train: whether the training rule applies.
    """
    shape = lambda *sizes: jax.ShapeDtypeStruct((2, *sizes), jnp.int32)
    batch = {'tokens': shape(width)}
    if components is not None:
        batch['positions'] = shape(width, *components)
    if source is not None:
        batch['source'] = shape(source[0])
        if source[1] is not None:
            batch['source_positions'] = shape(source[0], *source[1])
    _check_batch(model, batch, train=train)


def _check_batch(model: Transformer, batch: dict[str, Any], *, train: bool) -> None:
    """Traces a call of the model on a batch of arrays or their shapes."""
    graphdef, state = nnx.split(model)

    def call(state, batch):
        model, key = nnx.merge(graphdef, state), jax.random.key(0) if train else None
        width = batch['source'].shape[1] if 'source' in batch else None
        with contextlib.nullcontext() if width is None else about(f'the source of {width} tokens'):
            read = encoded_source(model, source_of(batch), key, train)
        if key is not None:
            auxiliary_loss(model, batch, key)
        return model(inputs_of(batch), tokens_of(batch), key=key, train=train, source=read)

    with made_for('shapes'):  # processes may still have to join, and the CPU may be split later
        jax.eval_shape(call, state, batch)
