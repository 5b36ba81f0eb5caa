"""From a config to what a run needs, with every error raised before any device is touched."""

import json
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from posenc_jax.core import spec as spec_language
from posenc_jax.core.registry import SpecError, check_choice
from posenc_jax.evaluation.protocols import check_stride
from posenc_jax.model.transformer import Transformer, TransformerConfig
from posenc_jax.tasks import Task

# A run resumed with another value here trains the same model: where it lies, how it is watched, spread, evaluated.
FREE_FIELDS = ('workdir', 'name', 'extend', 'mesh', 'eval', 'train.log_every', 'train.eval_every', 'train.eval_batches',
               'train.save_every', 'train.keep')  # fmt: skip
FILE = 'config.json'  # in the run directory
MAX_NAME = 100


def validate(config: ConfigDict) -> ConfigDict:
    """A locked copy with all references resolved and derived fields filled in, checked without touching a device.

    Specs are parsed, the data set is looked up, the numbers are checked, and the model is built and called on shapes.

    Raises:
      ValueError: what is wrong, what was expected, and the nearest valid choice (`SpecError` for strings).
      FileNotFoundError: text that is not there.
    """
    config = ConfigDict(config.to_dict(), convert_dict=True)
    _check_numbers(config)
    for spec in (config.encoding, *config.pattern):
        spec_language.parse(spec)
    if config.extend:
        spec_language.parse(config.extend, ('extension', 'frequencies'))
    task = make_task(config)
    cfg = model_config(config, task)
    if config.eval.at_end and task.is_language and {'sliding', 'same_tokens'} & set(config.eval.protocols):
        check_stride(config.eval.stride, min((*config.eval.lengths, config.train.length)))
    config.name = config.name or run_name(config)
    if config.name != os.path.basename(config.name) or config.name in ('.', '..'):
        raise ValueError(f'name is a folder within workdir, got {config.name!r}')
    jax.eval_shape(lambda: _logits(cfg))
    return config.lock()


def _logits(cfg: TransformerConfig):
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    return model(jnp.zeros((1, cfg.train_len), jnp.int32), key=jax.random.key(0), train=True)


def make_task(config: ConfigDict) -> Task:
    """The task of a config; `config.data` supplies those of its arguments that the spec string does not give.

    Raises:
      SpecError, FileNotFoundError: unknown task, data set or argument; text that is not there.
    """
    nodes = spec_language.parse(config.task, ('task',)).nodes
    if len(nodes) > 1:
        raise SpecError(f'task is {config.task!r}: tasks cannot be joined by "|"')
    (node,) = nodes
    given = {name: value for name, value in config.data.items() if value and name in node.entry.parameters}
    return spec_language.build(spec_language.Node(node.entry, {**given, **node.arguments}), {})


def task_length(config: ConfigDict, task: Task) -> int | tuple[int, int]:
    """The length, or the range of lengths, that training draws from."""
    return config.train.length if task.is_language else (config.train.min_length, config.train.length)


def model_config(config: ConfigDict, task: Task) -> TransformerConfig:
    """The model of a config; its `train_len` is the width of a training batch."""
    width = task.width(task_length(config, task))
    within = ConfigDict(config.to_dict(), convert_dict=True)
    within.train.length = width
    return TransformerConfig.from_config(within, task.vocab_size)


def run_name(config: ConfigDict) -> str:
    """A folder name made of the task (with its data set), the encodings and the seed.

    Example: 'language-pydoc_topics-rope-s0'.
    """
    (node,) = spec_language.parse(config.task, ('task',)).nodes
    reads = 'dataset' in node.entry.parameters and 'dataset' not in node.arguments
    dataset = [config.data.dataset] if reads else []
    text = [config.task, *dataset, *(config.pattern or (config.encoding,)), f's{config.seed}']
    return '-'.join(re.sub(r'[^\w.]+', '-', part).strip('-') for part in text)[-MAX_NAME:].lstrip('-')


def save(config: ConfigDict, path: pathlib.Path) -> None:
    """Writes a config as JSON; the file is complete or not there."""
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(config.to_dict(), indent=2) + '\n')
    os.replace(partial, path)


def from_json(path: pathlib.Path) -> ConfigDict:
    """The config that `save` wrote.

    Raises:
      FileNotFoundError: there is none.
      ValueError: the file is not a config.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist: {path.parent} is not the directory of a run')
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path} is not a config: {error}') from None
    if not isinstance(fields, dict):
        raise ValueError(f'{path} is not a config: it holds a {type(fields).__name__}')
    return ConfigDict(_with_tuples(fields), convert_dict=True).lock()


def _with_tuples(value):
    """JSON has lists only; configs hold tuples only."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def fields_of(config: ConfigDict, prefix: str = '') -> dict[str, Any]:
    """Dotted name -> value, for every field."""
    fields = {}
    for key, value in config.items():
        fields.update(fields_of(value, f'{prefix}{key}.') if isinstance(value, ConfigDict) else {prefix + key: value})
    return fields


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lines 'train.lr: 0.001 -> 0.01' for the fields that change what is trained."""
    before, after = fields_of(old), fields_of(new)
    lines = []
    for name in sorted(before.keys() | after.keys()):
        free = any(name == field or name.startswith(field + '.') for field in FREE_FIELDS)
        if not free and (name not in before or name not in after or before[name] != after[name]):
            lines.append(f'{name}: {before.get(name, "(absent)")!r} -> {after.get(name, "(absent)")!r}')
    return lines


def _check_numbers(config: ConfigDict) -> None:
    train = config.train

    def need(condition, name, expected):
        if not condition:
            value = fields_of(config)[name]
            raise ValueError(f'{name} must be {expected}, got {value!r}')

    counts = ('steps', 'batch', 'length', 'min_length', 'accumulate', 'log_every', 'save_every', 'keep', 'eval_batches')
    for name in counts:
        need(train[name] >= 1, f'train.{name}', 'at least 1')
    for name in ('warmup', 'eval_every', 'weight_decay', 'clip', 'z_loss'):
        need(train[name] >= 0, f'train.{name}', 'at least 0')
    need(train.lr > 0, 'train.lr', 'positive')
    need(0 <= train.end_lr_fraction <= 1, 'train.end_lr_fraction', 'between 0 and 1')
    for name in ('b1', 'b2'):
        need(0 <= train[name] < 1, f'train.{name}', 'in [0, 1)')
    need(train.warmup <= train.steps, 'train.warmup', f'at most train.steps = {train.steps}')
    need(train.batch % train.accumulate == 0, 'train.batch', f'a multiple of train.accumulate = {train.accumulate}')
    need(0 <= config.seed < 2**32, 'seed', f'between 0 and {2**32 - 1}')
    check_choice('eval.split', config.eval.split, ('train', 'validation', 'test'))
    need(all(isinstance(n, int) and n >= 1 for n in config.eval.lengths), 'eval.lengths', 'whole numbers of at least 1')
    need(config.mesh.cpu_devices >= 0, 'mesh.cpu_devices', 'at least 0')
