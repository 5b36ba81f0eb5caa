"""The plan of a run: its config is resolved once into a task, a model and a directory. All errors
are raised before any device is used.
"""

import dataclasses
import functools
import os
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from posenc_jax.lab.config import field_settings, settings
from posenc_jax.lab.config.fields import check_fields, check_numbers, fields_of
from posenc_jax.lab.files import imports, paths, room
from posenc_jax.lab.model.config import KINDS, POOLS, TransformerConfig
from posenc_jax.lab.model.field import Field, FieldConfig
from posenc_jax.lab.model.kinds import Model, ModelConfig, abstract_model
from posenc_jax.lab.model.pyramid import pixels_per_patch
from posenc_jax.lab.tasks import FieldTask, Task
from posenc_jax.language import spec as spec_language
from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.protocol.checks import about
from posenc_jax.protocol.errors import SpecError, check_choice, quoted

MAX_NAME = 100  # characters of a name that `run_name` composes
LONGEST_NAME = 255  # bytes of a folder name


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run as its config resolves it.

    Attributes:
      directory: the run directory.
      config: the config, with derived fields filled in.
      task: the task, which makes the batches.
      cfg: the config of the model.
    """

    directory: pathlib.Path
    config: ConfigDict
    task: Task
    cfg: ModelConfig

    @functools.cached_property
    def model(self) -> Model:
        """The model as shapes, without the context extension of an evaluation."""
        return abstract_model(self.cfg)

    @property
    def length(self) -> int | tuple[int, int]:
        """The length, or the range (lowest, highest) of lengths, that training draws from."""
        return task_length(self.config, self.task)


def validate(config: ConfigDict) -> ConfigDict:
    """The config of `resolve(config)`. Raises the same errors."""
    return resolve(config).config


def resolve(config: ConfigDict) -> Plan:
    """Resolves and checks the config of a training run without using a device. The config of the
    plan is a locked copy.

    Specs are parsed, the data set is looked up, numbers are checked, and the model is built and
    called on shapes. Errors of the evaluation at the end of training are raised now.

    Raises:
      ValueError: a field is wrong; the message says what was expected and names the nearest valid
        choice. For strings it is a `SpecError`.
      FileNotFoundError: the text does not exist.
    """
    check_fields(config)
    config = imported(config)
    check_numbers(config)
    check_choice('model.kind', config.model.kind, (*KINDS, FieldConfig.kind))
    field_settings.check_applies(config)
    for spec in (config.encoding, *config.pattern):
        parse_layer(spec)
    for name in ('cross', 'source_encoding'):
        _check_source_spec(name, config[name])
    for spec in config.source_pattern:
        _check_source_spec('source_pattern', spec)
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
            f'name must be a folder within workdir, of at most {LONGEST_NAME} bytes, got '
            f'{quoted(config.name)}'
        )
    directory = paths.path(config.workdir) / config.name
    room.check_place(directory)
    plan = Plan(directory, config.lock(), task, cfg)
    check_training(plan)
    if config.eval.at_end:
        try:
            check_evaluation(config, task, cfg, plan.model)
        except ValueError as error:
            raise ValueError(
                f'the evaluation at the end of training would fail: {error}. Change the fields of '
                'eval, e.g. --config.eval.lengths=..., or train without it: '
                '--config.eval.at_end=False'
            ) from error
    return plan


def imported(config: ConfigDict) -> ConfigDict:
    """A copy of a config with the names under which its modules are stored; they are imported.

    Raises:
      ValueError, FileNotFoundError: as `lab.files.imports.load`.
    """
    config = ConfigDict(config.to_dict(), convert_dict=True)
    config.imports = imports.load(config.imports)
    return config


def check_training(plan: Plan) -> None:
    """Checks that the model of a plan can be trained on its task.

    Raises:
      ValueError: it cannot; the message says what stands against it.
    """
    config, task, model = plan.config, plan.task, plan.model
    if isinstance(model, Field):
        field_settings.check_training(config, task, model)
        return
    settings.check_kind(model, task, config.task)
    if config.train.segment:
        settings.check_segments(model)
    settings.check_read(model, task, config.train.length, plan.cfg.train_len, train=True)


def check_evaluation(
    config: ConfigDict, task: Task, cfg: ModelConfig, model: Model | None = None
) -> None:
    """Checks that a model can be evaluated as its config says; arguments and errors as for
    `settings.check` and `field_settings.check_evaluation`.
    """
    if isinstance(cfg, FieldConfig):
        field_settings.check_evaluation(config, task, cfg)
    elif isinstance(task, FieldTask):
        raise SpecError(f'{config.task} asks for values at points, which only a field reads')
    else:
        assert not isinstance(model, Field)
        settings.check(config, task, cfg, model)


def _check_source_spec(name: str, spec: str) -> None:
    """Checks the field `name`, a spec string of encodings; '' is none. Raises SpecError."""
    with about(name):
        for node in parse_layer(spec or 'nope()').nodes:
            if node.entry.kind == 'mixer':
                raise SpecError(
                    f'{node.entry.key} is a mixer; cross-attention and the layers that read a '
                    "source are attention with encodings, e.g. 'rope()'"
                )


def make_task(config: ConfigDict) -> Task:
    """The task of a config. `config.data` and `config.features` give arguments that the spec string
    leaves out.

    Raises:
      SpecError: unknown task, data set or argument.
      FileNotFoundError: the text does not exist.
    """
    nodes = spec_language.parse(config.task, ('task',)).nodes
    if len(nodes) != 1:
        raise SpecError(f'task is {config.task!r}: tasks cannot be joined by "|"')
    (node,) = nodes
    return spec_language.build(
        _with_data(node, {**config.data, 'features': config.get('features', '')}), {}
    )


def _with_data(node: spec_language.Node, data: dict[str, Any]) -> spec_language.Node:
    """A call, and the calls of tasks within it, with the missing arguments taken from `data`."""
    nested = lambda value: (
        _with_data(value, data) if isinstance(value, spec_language.Node) else value
    )
    given = {name: value for name, value in data.items() if value and name in node.entry.parameters}
    return spec_language.Node(
        node.entry, {**given, **{name: nested(value) for name, value in node.arguments.items()}}
    )


def task_length(config: ConfigDict, task: Task) -> int | tuple[int, int]:
    """The length, or the range (lowest, highest) of lengths, that training draws from."""
    length = config.train.length
    return length if task.one_length else (config.train.min_length, length)


def model_config(config: ConfigDict, task: Task) -> ModelConfig:
    """The model of a config. Its `train_len` is the width of a training batch.

    Raises:
      ValueError: sizes do not fit together, or the task does not have the length.
    """
    length = task_length(config, task)
    try:
        width = settings.width_of(task, length)
    except ValueError as error:
        fields = ('train.length',) if task.one_length else ('train.min_length', 'train.length')
        given = ', '.join(
            f'{name}={value}' for name, value in fields_of(config).items() if name in fields
        )
        raise ValueError(f'{given}: {error}') from error
    if isinstance(task, FieldTask):
        return sized_model(
            config,
            width=width,
            output_size=task.output_size,
            components=task.components,
            predicts=task.predicts,
            bits=task.bits,
        )
    if config.model.kind == 'encoder_decoder' and not task.source_size:
        instead = 'decoder' if task.predicts == 'next' else 'encoder'
        raise SpecError(
            f"model.kind is 'encoder_decoder', but {config.task} has no source to read; use "
            f'{instead!r}, or a task with a source'
        )
    if task.source_size and config.model.kind != 'encoder_decoder':
        raise SpecError(
            f'model.kind is {config.model.kind!r}, but {config.task} has a source to read; use '
            "'encoder_decoder'"
        )
    if task.is_image:
        if not config.model.patch:
            raise SpecError(f'model.patch is 0, but {config.task} has images to cut; use e.g. 4')
        side = pixels_per_patch(config.model.patch, config.model.lower)
        width = max(1, width // side**2) + (config.model.pool == 'token')
    shape: dict[str, Any] = dict(
        vocab_size=task.vocab_size, width=width, output_size=task.output_size
    )
    shape['pooled'] = int(task.predicts == 'class')
    shape['channels'] = task.channels
    if task.source_size:
        shape |= dict(source_size=task.source_size, source_width=task.source_width(length))
    return sized_model(config, **shape)


def sized_model(
    config: ConfigDict,
    vocab_size: int = 0,
    width: int = 1,
    output_size: int = 0,
    pooled: int = 0,
    channels: int = 0,
    source_size: int = 0,
    source_width: int = 0,
    components: int = 0,
    predicts: str = '',
    bits: int = 0,
) -> ModelConfig:
    """The model of a config with the sizes that its task sets.

    Args:
      config: the config of the run.
      vocab_size: number of token ids.
      width: tokens of a training row.
      output_size: number of target ids; 0 for `vocab_size`.
      pooled: 1 if the class of the row is predicted, else 0.
      channels: numbers of a vector or of a pixel; 0 where ids are read.
      source_size, source_width: token ids of the source and tokens of its training rows; 0 where
        there is none.
      components, predicts, bits: of a task of points, see `FieldConfig`; 0 and '' for others.

    Raises:
      SpecError: a kind of model that cannot do the task.
    """
    if field_settings.is_field(config) != bool(components):
        found, instead = ('points', "'field'") if components else ('tokens', "'decoder'")
        raise SpecError(
            f'model.kind is {config.model.kind!r}, but {config.task} has {found} to read; use '
            f'{instead}'
        )
    if components:
        return FieldConfig(
            components=components,
            output_size=output_size,
            predicts=predicts,
            features=config.features,
            field=config.field,
            bits=bits,
        )
    within = ConfigDict(config.to_dict(), convert_dict=True)
    within.train.length = width
    pool = check_choice('model.pool', config.model.pool, POOLS[1:] if pooled else POOLS)
    return TransformerConfig.from_config(
        within,
        vocab_size,
        output_size=output_size,
        pool=pool if pooled else '',
        channels=channels,
        source_size=source_size,
        source_len=source_width,
    )


def run_name(config: ConfigDict) -> str:
    """A folder name made of the task (with its data set), the encodings and the seed, e.g.
    'language-pydoc_topics-rope-s0'.
    """
    (node,) = spec_language.parse(config.task, ('task',)).nodes
    reads = 'dataset' in node.entry.parameters and 'dataset' not in node.arguments
    dataset = [config.data.dataset] if reads else []
    specs = list(config.pattern or (config.encoding,))
    if field_settings.is_field(config):
        specs = [config.features, config.field]
    else:
        specs = [
            config.features,
            *specs,
            '' if config.model.kind == 'decoder' else config.model.kind,
        ]
    if config.model.kind == 'encoder_decoder':
        specs += config.source_pattern or (config.source_encoding,)
        specs += [config.cross] if config.cross != 'nope()' else []
    text = [config.task, *dataset, *filter(None, specs), f's{config.seed}']
    return '-'.join(re.sub(r'[^\w.]+', '-', part).strip('-') for part in text)[-MAX_NAME:].lstrip(
        '-'
    )
