"""Checks of the runs of fields: which fields of a config apply to them, and that task, network and
evaluation fit each other. No device is used.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults, settings
from posenc_jax.lab.config.fields import fields_of
from posenc_jax.lab.model.field import Field, FieldConfig
from posenc_jax.lab.tasks import FieldTask, Task
from posenc_jax.language import spec as spec_language
from posenc_jax.protocol.errors import SpecError, quoted

# The fields, or groups of fields, that a field ignores; one that is not at its default is an error.
UNUSED = (
    *('encoding', 'share', 'pattern', 'cross', 'source_encoding', 'source_pattern'),
    *('extend', 'init', 'data'),
    *('model', 'train.min_length', 'train.segment', 'train.memory', 'train.tune'),
    *('mesh.tensor', 'mesh.sequence', 'eval.protocols', 'eval.tokens', 'eval.batch'),
    *('eval.stride', 'eval.buckets', 'eval.samples', 'eval.depths', 'eval.positions'),
    'eval.decode',
)
OWN = ('features', 'field')  # which only a field reads, and features also a task on graphs


def is_field(config: ConfigDict) -> bool:
    """Whether the model of a config is a field."""
    return config.model.kind == 'field'


def check_applies(config: ConfigDict) -> None:
    """Checks that the fields of a config that do not apply to its kind of model are at their
    defaults, and parses those that only a field reads.

    Raises:
      SpecError: one is not; a spec string is wrong.
    """
    usual, found = fields_of(defaults.get_config()), fields_of(config)
    within = lambda name, groups: any(name == g or name.startswith(f'{g}.') for g in groups)
    (task,) = spec_language.parse(config.task, ('task',)).nodes[:1]
    own = OWN[1:] if 'features' in task.entry.parameters else OWN
    groups = UNUSED if is_field(config) else own
    for name, value in found.items():
        if name != 'model.kind' and within(name, groups) and value != usual[name]:
            whom = 'is not read' if is_field(config) else "a 'field' alone reads"
            raise SpecError(
                f'{name} is {quoted(value)}, which {whom}; model.kind is {config.model.kind!r}, so '
                f'leave it at {usual[name]!r}'
            )
    if not is_field(config):
        return
    if config.features:
        spec_language.parse(config.features, ('coordinates',))
    if len(spec_language.parse(config.field, ('field',)).nodes) != 1:
        raise SpecError(f'field is {quoted(config.field)}: networks cannot be joined by "|"')


def check_training(config: ConfigDict, task: Task, model: Field) -> None:
    """Checks that a field can be trained on a task: that it can be called on its points, that a
    batch has no more points than there are, that its features are defined at all of them, and that
    its loss has a log-partition if `train.z_loss` asks for one.

    Args:
      config: the config of the run.
      task: the task.
      model: the model as shapes.

    Raises:
      ValueError: it does not; the message says what was expected.
    """
    assert isinstance(task, FieldTask)
    cfg = model.cfg
    if config.train.z_loss and cfg.predicts != 'class':
        raise SpecError(
            f'train.z_loss is {config.train.z_loss}, but {config.task} predicts {cfg.predicts}, '
            'which has no log-partition; set it to 0'
        )
    task.check_batch(config.train.batch, config.train.length)
    try:  # once, since a compiled step does not see values
        model.check_coordinates(task.points(config.train.length).coords)
    except ValueError as error:
        raise SpecError(
            f'features is {config.features!r}, task is {config.task}: {error}'
        ) from error
    graphdef, state = nnx.split(model)
    call = lambda state, x: nnx.merge(graphdef, state)(x, key=jax.random.key(0), progress=0.0)
    jax.eval_shape(call, state, jax.ShapeDtypeStruct((2, cfg.components), jnp.float32))


def check_evaluation(config: ConfigDict, task: Task, cfg: FieldConfig) -> None:
    """Checks that a field can be evaluated as its config says.

    Args:
      config: its fields `eval`, `extend` and `train.length` are used.
      task: the task of the evaluation.
      cfg: the config of the trained model.

    Raises:
      ValueError: a setting does not fit; the message says what was expected.
    """
    settings.check_fields(config.eval)
    check_applies(config)
    if not isinstance(task, FieldTask):
        raise SpecError(f'the model is a field, which reads points; {config.task} has none')
    for what, ours, theirs in (
        ('coordinates a point', cfg.components, task.components),
        ('outputs a point', cfg.output_size, task.output_size),
        ('predicts', cfg.predicts, task.predicts),
        ('bits', cfg.bits, task.bits),
    ):
        if ours != theirs:
            raise SpecError(f'the model was trained with {what}: {ours}; {config.task}: {theirs}')
    if config.eval.split == 'train':
        raise SpecError("eval.split is 'train'; tasks are evaluated on 'validation' or 'test'")
    problems, lengths = {}, settings.lengths_of(config)
    for length in lengths:
        try:
            task.width(length)
        except ValueError as error:
            problems[length] = error
    if problems:
        reached = ','.join(str(length) for length in lengths if length not in problems)
        remedy = f'; lengths that fit: --config.eval.lengths={reached}' if reached else ''
        length, error = next(iter(problems.items()))
        raise SpecError(f'at length {length}: {error}{remedy}') from error
