"""The task of a config, and the model whose sizes the task sets."""

from typing import Any

from ml_collections import ConfigDict

from posenc_jax.lab.config import field_settings
from posenc_jax.lab.model.config import POOLS, TransformerConfig
from posenc_jax.lab.model.field import FieldConfig
from posenc_jax.lab.model.kinds import ModelConfig
from posenc_jax.lab.runs.field_problem import FieldProblem
from posenc_jax.lab.runs.problem import ClassProblem, Problem, SourceProblem, TextProblem
from posenc_jax.lab.tasks import FieldTask, Task
from posenc_jax.lab.tasks.class_task import ClassTask
from posenc_jax.language import spec as spec_language
from posenc_jax.protocol.errors import SpecError, check_choice


def task_call(config: ConfigDict) -> spec_language.Node:
    """The call that `config.task` is.

    Raises:
      SpecError: unknown task or argument, or several tasks.
    """
    nodes = spec_language.parse(config.task, ('task',)).nodes
    if len(nodes) != 1:
        raise SpecError(f'task is {config.task!r}: tasks cannot be joined by "|"')
    return nodes[0]


def make_task(config: ConfigDict, call: spec_language.Node | None = None) -> Task:
    """The task of a config. `config.data` and `config.features` give arguments that the spec string
    leaves out. `call` is the result of `task_call`; None parses the spec string.

    Raises:
      SpecError: unknown task, data set or argument.
      FileNotFoundError: the text does not exist.
    """
    call = task_call(config) if call is None else call
    given = {**config.data, 'features': config.get('features', '')}
    return spec_language.build(_with_data(call, given), {})


def _with_data(node: spec_language.Node, data: dict[str, Any]) -> spec_language.Node:
    """A call, and the calls of tasks within it, with the missing arguments taken from `data`."""
    nested = lambda value: (
        _with_data(value, data) if isinstance(value, spec_language.Node) else value
    )
    given = {name: value for name, value in data.items() if value and name in node.entry.parameters}
    return spec_language.Node(
        node.entry, {**given, **{name: nested(value) for name, value in node.arguments.items()}}
    )


def problem_of(task: Task, spec: str = '') -> Problem:
    """The problem that a task is; `spec` is its spec string."""
    kinds = (
        (FieldProblem, isinstance(task, FieldTask)),
        (TextProblem, task.is_language),
        (ClassProblem, isinstance(task, ClassTask)),
        (SourceProblem, task.source_size),
        (Problem, True),
    )
    return next(kind for kind, is_it in kinds if is_it)(task, spec)


def task_length(config: ConfigDict, task: Task) -> int | tuple[int, int]:
    """The length, or the range (lowest, highest) of lengths, that training draws from."""
    return problem_of(task).length(config)


def model_config(config: ConfigDict, task: Task) -> ModelConfig:
    """The model of a config. Its `train_len` is the width of a training batch.

    Raises:
      ValueError: sizes do not fit together, or the task does not have the length.
    """
    return sized_model(config, **problem_of(task, config.task).shape(config))


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
