"""Checks which fields of a config apply to the run of a field."""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults
from posenc_jax.lab.config.fields import fields_of
from posenc_jax.language import spec as spec_language
from posenc_jax.protocol.calls import Node
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


def check_applies(config: ConfigDict, task: Node) -> None:
    """Checks that the fields of a config that do not apply to its kind of model are at their
    defaults, and parses those that only a field reads. `task` is the call of its task.

    Raises:
      SpecError: one is not; a spec string is wrong.
    """
    usual, found = fields_of(defaults.get_config()), fields_of(config)
    within = lambda name, groups: any(name == g or name.startswith(f'{g}.') for g in groups)
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
