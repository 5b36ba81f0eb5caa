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


def sized_model(config: ConfigDict, *, width: int, **shape: Any) -> ModelConfig:
    """The model of a config with the sizes that its task sets: `shape` as `Problem.shape` gives
    them, with `width`, the tokens of a training row.

    Raises:
      SpecError: a kind of model that cannot do the task.
    """
    points = 'components' in shape
    if field_settings.is_field(config) != points:
        found, instead = ('points', "'field'") if points else ('tokens', "'decoder'")
        raise SpecError(
            f'model.kind is {config.model.kind!r}, but {config.task} has {found} to read; use '
            f'{instead}'
        )
    if points:  # a file may lack two of them, which `FieldConfig` refuses
        sizes: dict[str, Any] = dict(output_size=0, predicts='') | shape
        return FieldConfig(features=config.features, field=config.field, **sizes)
    pooled, source_len = shape.pop('pooled', 0), shape.pop('source_width', 0)
    pool = check_choice('model.pool', config.model.pool, POOLS[1:] if pooled else POOLS)
    return TransformerConfig.from_config(
        config, train_len=width, pool=pool if pooled else '', source_len=source_len, **shape
    )
