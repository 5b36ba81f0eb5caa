"""From a config to what a run needs, with every error raised before any device is touched."""

import dataclasses
import difflib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from posenc_jax.core import disk
from posenc_jax.core import spec as spec_language
from posenc_jax.core.registry import LARGEST, SpecError, nearest, quoted
from posenc_jax.core.tokens import Tokens
from posenc_jax.model.config import TransformerConfig
from posenc_jax.model.transformer import Transformer, abstract_model
from posenc_jax.run import defaults, settings
from posenc_jax.run.json_file import listed, read_object, typed
from posenc_jax.tasks import Task

# A run resumed with another value here trains the same model: where it lies, how it is watched,
# spread, evaluated.
FREE_FIELDS = ('workdir', 'name', 'extend', 'mesh', 'cluster', 'eval', 'train.log_every',
    'train.eval_every', 'train.eval_batches',
               'train.save_every', 'train.keep')  # fmt: skip
FILE = 'config.json'  # in the run directory
# beside the fields in that file: sizes that the task gives the model, which is then built without
# data
SHAPE = 'task_shape'
# likewise, where a run went on with --resume_changed: digests of the configs it had before
EARLIER = 'resumed_changed'
ITEMS = {
    'pattern': str,
    'eval.lengths': int,
    'eval.protocols': str,
    'eval.depths': float,
}  # what the lists in that file hold
MAX_NAME = 100  # of names that are made here
LONGEST_NAME = 255  # of a file, in bytes
MAX_SEGMENTS = 64
MAX_PATTERN = 256  # layers that differ; each is traced on its own


def validate(config: ConfigDict) -> ConfigDict:
    """A locked copy with all references resolved and derived fields filled in, checked without
    touching a device.

    Specs are parsed, the data set is looked up, the numbers are checked, the model is built and
    called on shapes, and what an evaluation at the end would refuse is refused now.

    Raises:
      ValueError: what is wrong, what was expected, and the nearest valid choice (`SpecError` for
        strings).
      FileNotFoundError: text that is not there.
    """
    check_fields(config)
    config = ConfigDict(config.to_dict(), convert_dict=True)
    _check_numbers(config)
    for spec in (config.encoding, *config.pattern):
        spec_language.parse(spec)
    if config.extend:
        spec_language.parse(config.extend, ('extension', 'frequencies'))
    task = make_task(config)
    cfg = model_config(config, task)
    settings.check_memory(
        f'train.batch={config.train.batch} rows of', config.train.batch, cfg.train_len
    )
    config.name = config.name or run_name(config)
    if (
        config.name != os.path.basename(config.name)
        or config.name in ('.', '..')
        or len(config.name.encode()) > LONGEST_NAME
    ):
        raise ValueError(
            f'name is a folder within workdir, of at most {LONGEST_NAME} bytes, got '
            f'{quoted(config.name)}'
        )
    model = abstract_model(cfg)
    settings.check_causal(model, config.task)
    supplied = settings.check_ids(model, task, config.train.length, training=True)
    jax.eval_shape(lambda: _logits(cfg, None if supplied is None else supplied[:1, :1]))
    if config.eval.at_end:
        try:
            settings.check(config, task, cfg)
        except ValueError as error:
            raise ValueError(
                f'the evaluation at the end of training would fail: {error}. Change the fields '
                'of eval, e.g. '
                '--config.eval.lengths=..., or train without it: --config.eval.at_end=False'
            ) from error
    return config.lock()


def _logits(cfg: TransformerConfig, supplied: np.ndarray | None):
    """A training call on two rows, with positions for each and as many components as a task
    supplies.
    """
    model, shape = Transformer(cfg, rngs=nnx.Rngs(0)), (2, cfg.train_len)
    tok = (
        None
        if supplied is None
        else Tokens.of(positions=jnp.zeros((*shape, *supplied.shape[2:]), jnp.int32))
    )
    return model(jnp.zeros(shape, jnp.int32), tok, key=jax.random.key(0), train=True)


def make_task(config: ConfigDict) -> Task:
    """The task of a config; `config.data` supplies those of its arguments that the spec string does
    not give.

    Raises:
      SpecError, FileNotFoundError: unknown task, data set or argument; text that is not there.
    """
    nodes = spec_language.parse(config.task, ('task',)).nodes
    if len(nodes) != 1:
        raise SpecError(f'task is {config.task!r}: tasks cannot be joined by "|"')
    (node,) = nodes
    return spec_language.build(_with_data(node, config.data), {})


def _with_data(node: spec_language.Node, data: ConfigDict) -> spec_language.Node:
    """The call, and those of tasks within it, with what they do not say of the data."""
    nested = lambda value: (
        _with_data(value, data) if isinstance(value, spec_language.Node) else value
    )
    given = {name: value for name, value in data.items() if value and name in node.entry.parameters}
    return spec_language.Node(
        node.entry, {**given, **{name: nested(value) for name, value in node.arguments.items()}}
    )


def task_length(config: ConfigDict, task: Task) -> int | tuple[int, int]:
    """The length, or the range of lengths, that training draws from."""
    return (
        config.train.length if task.is_language else (config.train.min_length, config.train.length)
    )


def model_config(config: ConfigDict, task: Task) -> TransformerConfig:
    """The model of a config; its `train_len` is the width of a training batch.

    Raises:
      ValueError: sizes that do not fit together, or a length that the task does not have.
    """
    length = task_length(config, task)
    try:
        width = settings.width_of(task, length)
    except ValueError as error:
        fields = ('train.length',) if task.is_language else ('train.min_length', 'train.length')
        given = ', '.join(
            f'{name}={value}' for name, value in fields_of(config).items() if name in fields
        )
        raise ValueError(f'{given}: {error}') from error
    return _sized(config, task.vocab_size, width)


@dataclasses.dataclass(frozen=True)
class Saved:
    """What the file of a run says.

    Attributes:
      config: its fields.
      shape: `vocab_size` and `width`, the sizes that its task gives the model; {} in files of
        versions that stored none.
      earlier: digests of the configs that the run had before it went on with another one (see
        `checkpoint.Checkpoints`).
    """

    config: ConfigDict
    shape: Mapping[str, int] = dataclasses.field(default_factory=dict)
    earlier: tuple[str, ...] = ()

    @property
    def model_config(self) -> TransformerConfig:
        """The model, without its data; files that store no shape need the data."""
        return (
            _sized(self.config, **self.shape)
            if self.shape
            else model_config(self.config, make_task(self.config))
        )

    @property
    def bound(self) -> dict[str, Any]:
        """Dotted name -> value, of the fields and sizes that change what is trained or computed."""
        fields = {
            name: value for name, value in fields_of(self.config).items() if not _is_free(name)
        }
        return fields | {f'{SHAPE}.{name}': size for name, size in self.shape.items()}


def stored_model_config(path: pathlib.Path) -> TransformerConfig:
    """The model of the config that `save` wrote, without its data; files of older versions need the
    data.
    """
    return read_saved(path).model_config


def _sized(config: ConfigDict, vocab_size: int, width: int) -> TransformerConfig:
    within = ConfigDict(config.to_dict(), convert_dict=True)
    within.train.length = width
    return TransformerConfig.from_config(within, vocab_size)


def run_name(config: ConfigDict) -> str:
    """A folder name made of the task (with its data set), the encodings and the seed.

    Example: 'language-pydoc_topics-rope-s0'.
    """
    (node,) = spec_language.parse(config.task, ('task',)).nodes
    reads = 'dataset' in node.entry.parameters and 'dataset' not in node.arguments
    dataset = [config.data.dataset] if reads else []
    text = [config.task, *dataset, *(config.pattern or (config.encoding,)), f's{config.seed}']
    return '-'.join(re.sub(r'[^\w.]+', '-', part).strip('-') for part in text)[-MAX_NAME:].lstrip(
        '-'
    )


def save(config: ConfigDict, path: pathlib.Path) -> None:
    """Writes a config as JSON, with the shape that its task gives the model; the file is complete
    or not there.
    """
    write(saved_of(config), path)


def write(saved: Saved, path: pathlib.Path) -> None:
    """The same of what `saved_of` returned."""
    fields = (
        saved.config.to_dict()
        | {SHAPE: saved.shape}
        | ({EARLIER: saved.earlier} if saved.earlier else {})
    )
    disk.write(path, json.dumps(fields, indent=2) + '\n')


def saved_of(config: ConfigDict, earlier: Iterable[str] = ()) -> Saved:
    """A config with the shape that its task gives the model."""
    cfg = model_config(config, make_task(config))
    return Saved(config, {'vocab_size': cfg.vocab_size, 'width': cfg.train_len}, tuple(earlier))


def from_json(path: pathlib.Path) -> ConfigDict:
    """The config that `save` wrote; fields that an older version did not have get their defaults.

    Raises:
      FileNotFoundError: there is none.
      ValueError: the file is not a config, or has fields that this version does not know, by name,
        or of another type.
    """
    return read_saved(path).config


def read_saved(path: pathlib.Path) -> Saved:
    """The same with what stands beside the fields."""
    try:
        found = read_object(path, 'a config')
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{error}: {path.parent} is not the directory of a run') from None
    try:
        shape = _shape(found.pop(SHAPE)) if SHAPE in found else {}
        earlier = typed(found.pop(EARLIER, []), tuple, EARLIER, str)
        config, unknown = defaults.get_config(), []
        fields = _flattened(found, config, '', unknown)
    except ValueError as error:
        raise ValueError(f'{path} is not a config: {error}') from None
    if unknown:
        known = fields_of(config)
        close = lambda name: ''.join(
            f' (did you mean {match!r}?)' for match in difflib.get_close_matches(name, known, 1)
        )
        names = [
            quoted(name) + (close(name) if place < 6 else '')
            for place, name in enumerate(sorted(unknown))
        ]
        raise ValueError(
            f'{path} has fields that this version of posenc_jax does not know: {listed(names)}'
        )
    if not fields:
        raise ValueError(f'{path} is not a config: it holds no field')
    config.update_from_flattened_dict(fields)
    return Saved(config.lock(), shape, earlier)


def _shape(found: Any) -> dict[str, int]:
    names = ('vocab_size', 'width')
    if (
        not isinstance(found, dict)
        or sorted(found) != sorted(names)
        or min(typed(found[n], int, f'{SHAPE}.{n}') for n in names) < 1
    ):
        raise ValueError(
            f'{SHAPE} is {quoted(found)}, expected an object with the positive numbers '
            f'{" and ".join(names)}'
        )
    return found


def _flattened(
    found: dict[str, Any], usual: ConfigDict, prefix: str, unknown: list[str]
) -> dict[str, Any]:
    """Dotted name -> value of what was found, as the types that the defaults have; names that they
    lack go to `unknown`.
    """
    fields = {}
    for key, value in found.items():
        name = prefix + key
        if key not in usual:
            unknown.append(name)
        elif not isinstance(usual[key], ConfigDict):
            fields[name] = typed(value, type(usual[key]), name, ITEMS.get(name))
        elif isinstance(value, dict):
            fields |= _flattened(value, usual[key], f'{name}.', unknown)
        else:
            raise ValueError(f'{name} is {quoted(value)}, expected an object of fields')
    return fields


def fields_of(config: ConfigDict, prefix: str = '') -> dict[str, Any]:
    """Dotted name -> value, for every field."""
    fields = {}
    for key, value in config.items():
        fields.update(
            fields_of(value, f'{prefix}{key}.')
            if isinstance(value, ConfigDict)
            else {prefix + key: value}
        )
    return fields


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lines 'train.lr: 0.001 -> 0.01' for the fields that change what is trained."""
    changed = changes(Saved(old).bound, Saved(new).bound)
    return [
        f'{name}: {quoted(before)} -> {quoted(after)}' for name, (before, after) in changed.items()
    ]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields of `Saved.bound` whose values differ -> both values; one that is missing has its
    default.

    Example:
      >>> changes({'train.lr': 0.1, 'seed': 1}, {'train.lr': 0.2, 'seed': 1, 'train.z_loss': 0.0})
      {'train.lr': (0.1, 0.2)}
    """
    usual = fields_of(defaults.get_config())
    value = lambda fields, name: fields.get(name, usual.get(name, '(absent)'))
    pairs = {name: (value(old, name), value(new, name)) for name in sorted(old.keys() | new.keys())}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _is_free(name: str) -> bool:
    return any(name == field or name.startswith(field + '.') for field in FREE_FIELDS)


def check_fields(config: ConfigDict) -> None:
    """Whether a config has the fields of the defaults, each of the type that it has there, and
    numbers that arrays can hold.

    Raises:
      ValueError: names the field, and what was expected.
    """
    if not isinstance(config, ConfigDict):
        raise ValueError(
            'a config is a ConfigDict as training/defaults.py makes it, got '
            f'{type(config).__name__}: {quoted(config)}'
        )
    usual = defaults.get_config()
    try:
        found, known = fields_of(config), fields_of(usual)
    except ValueError as error:  # a reference to a field without a value
        raise ValueError(f'the config cannot be read: {error}') from None
    if unknown := sorted(map(str, found.keys() - known.keys())):
        raise ValueError(
            f'the config has no field {quoted(unknown[0])}; {nearest(unknown[0], known)}'
        )
    if missing := sorted(known.keys() - found.keys()):
        raise ValueError(
            f'the config lacks the field {missing[0]!r}; start from training/defaults.py'
        )
    for name, value in found.items():
        _check_value(name, value, type(known[name]))


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (kind, *{float: (int,), tuple: (list,)}.get(kind, ())))


def _check_value(name: str, value: Any, kind: type) -> None:
    if not _fits(value, kind):
        raise ValueError(
            f'{name} must be of type {kind.__name__}, got {type(value).__name__}: {quoted(value)}'
        )
    if kind is int and not -(2**31) <= value < 2 ** (32 if name == 'seed' else 31):
        raise ValueError(f'{name} must be a whole number of 32 bits, got {quoted(value)}')
    if kind is float and not abs(value) <= LARGEST:
        raise ValueError(f'{name} must be a finite number of 32 bits, got {quoted(value)}')
    for text in value if kind is tuple else (value,):
        if (
            isinstance(text, str)
            and not text.isprintable()
            and name not in ('encoding', 'pattern', 'extend', 'task')
        ):
            raise ValueError(
                f'{name} must be text of one line without control characters, got {quoted(value)}'
            )
    if name == 'pattern' and not all(isinstance(spec, str) for spec in value):
        raise ValueError(f'pattern must hold spec strings, got {quoted(value)}')
    if name == 'pattern' and len(value) > MAX_PATTERN:
        raise ValueError(f'pattern must hold at most {MAX_PATTERN} spec strings, got {len(value)}')


def _check_numbers(config: ConfigDict) -> None:
    train = config.train

    def need(condition, name, expected):
        if not condition:
            value = fields_of(config)[name]
            raise ValueError(f'{name} must be {expected}, got {value!r}')

    counts = (
        'steps',
        'batch',
        'length',
        'min_length',
        'accumulate',
        'log_every',
        'save_every',
        'keep',
        'eval_batches',
    )
    for name in counts:
        need(train[name] >= 1, f'train.{name}', 'at least 1')
    for name in ('warmup', 'eval_every', 'weight_decay', 'clip', 'z_loss', 'segment', 'memory'):
        need(train[name] >= 0, f'train.{name}', 'at least 0')
    need(
        train.segment < train.length, 'train.segment', f'below train.length = {train.length}, or 0'
    )
    few = train.length <= MAX_SEGMENTS * (train.segment or train.length)
    need(
        few,
        'train.segment',
        f'0, or at least train.length / {MAX_SEGMENTS}, since every segment is traced on its own',
    )
    need(train.segment or not train.memory, 'train.memory', '0 where train.segment is 0')
    need(
        not train.segment or config.model.kind == 'decoder',
        'train.segment',
        f'0 for a model of kind {config.model.kind!r}',
    )
    need(train.lr > 0, 'train.lr', 'positive')
    need(0 <= train.end_lr_fraction <= 1, 'train.end_lr_fraction', 'between 0 and 1')
    for name in ('b1', 'b2'):
        need(0 <= train[name] < 1, f'train.{name}', 'in [0, 1)')
    need(train.warmup <= train.steps, 'train.warmup', f'at most train.steps = {train.steps}')
    need(
        train.batch % train.accumulate == 0,
        'train.batch',
        f'a multiple of train.accumulate = {train.accumulate}',
    )
    need(0 <= config.seed < 2**32, 'seed', f'between 0 and {2**32 - 1}')
    settings.check_fields(config.eval)
    need(config.mesh.cpu_devices >= 0, 'mesh.cpu_devices', 'at least 0')
    start, silence = config.cluster.start_timeout, config.cluster.peer_timeout
    need(10 <= start <= 86400, 'cluster.start_timeout', 'between 10 and 86400 seconds')
    need(
        silence == 0 or 10 <= silence <= 86400,
        'cluster.peer_timeout',
        'between 10 and 86400 seconds, or 0 for none',
    )
