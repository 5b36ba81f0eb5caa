"""The rotary encoding that a checkpoint's config declares, as a spec string, and the way back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from posenc_jax.lab.pretrained.fields import PretrainedError
from posenc_jax.protocol.composite import name_of
from posenc_jax.protocol.errors import nearest

_YARN = ('beta_fast', 'beta_slow', 'attention_factor', 'mscale', 'mscale_all_dim', 'truncate')


@dataclasses.dataclass(frozen=True)
class RopeType:
    """A rope type of `transformers`, and the frequency rule here that it is.

    Attributes:
      rule: key of the rule; '' for plain frequencies.
      needed: parameters that a config must have.
      optional: parameters that it may have.
      train_len: whether the rule is told the trained length.
      only: arguments of the rule of which `transformers` has one value alone.
    """

    rule: str = ''
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    train_len: bool = True
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)


ROPE_TYPES = {
    'default': RopeType(),
    'linear': RopeType('pi', ('factor',), train_len=False),
    'dynamic': RopeType('dynamic_ntk', ('factor',)),
    'yarn': RopeType('yarn', ('factor',), _YARN, only={'dynamic': False, 'ramp': 'index'}),
    'longrope': RopeType(
        'longrope',
        ('long_factor', 'short_factor'),
        ('factor', 'attention_factor'),
        only={'dynamic': False, 'start': 0, 'mode': 'length'},
    ),
    'llama3': RopeType('llama3_rope', ('factor', 'low_freq_factor', 'high_freq_factor')),
    'proportional': RopeType('p_rope', optional=('factor',), only={'keep': 'highest'}),
}
# Parameters of any type that released configs have too; `finetuned` (YaRN) does not change the
# encoding.
_COMMON = (
    'rope_type',
    'type',
    'rope_theta',
    'partial_rotary_factor',
    'original_max_position_embeddings',
    'finetuned',
)


def trained_length(config: dict[str, Any], where: object = 'the checkpoint') -> int:
    """The length at which the model was trained, before any declared context extension.

    Raises:
      PretrainedError: the original length is larger than the extended length.
    """
    scaling = parameters(config, where)
    original = scaling.get('original_max_position_embeddings') or config.get(
        'original_max_position_embeddings'
    )
    longest = config['max_position_embeddings']
    # Configs of Phi-3 have an original length even without an extension, and `transformers` ignores
    # it for 'dynamic'.
    if scaling['rope_type'] in ('default', 'dynamic'):
        return int(longest)
    if original and original > longest:
        raise PretrainedError(
            f'{where}: original_max_position_embeddings={original} is longer than '
            f'max_position_embeddings={longest}, expected at most that'
        )
    return int(original or longest)


def parameters(config: dict[str, Any], where: object = 'the checkpoint') -> dict[str, Any]:
    """All rope parameters of a config: those in `rope_parameters` (new checkpoints), and those in
    `rope_theta`, `partial_rotary_factor` and `rope_scaling` (older checkpoints).
    """
    for name in ('rope_scaling', 'rope_parameters'):
        if any(isinstance(value, dict) for value in (config.get(name) or {}).values()):
            raise PretrainedError(
                f'{where}: {name} differs by layer ({", ".join(config[name])}), which is not '
                'supported'
            )
    found = {'rope_theta': config.get('rope_theta', config.get('rotary_emb_base', 10000.0))}
    partial = config.get('partial_rotary_factor', config.get('rotary_pct'))
    if partial is not None:
        found['partial_rotary_factor'] = partial
    found.update(config.get('rope_scaling') or {})
    found.update(config.get('rope_parameters') or {})
    found['rope_type'] = found.get('rope_type') or found.get('type') or 'default'
    if found['rope_type'] == 'su':  # the first name of longrope
        found['rope_type'] = 'longrope'
    return found


def rope_of_kind(config: dict[str, Any], kind: str, base: float, where: object) -> dict[str, Any]:
    """The config as layers of one kind read it, in a model whose kinds of layers differ in their
    rotary encoding: with the rope parameters of that kind alone. An older config scales the rope of
    layers with full attention only.

    Args:
      config: the config of the checkpoint.
      kind: 'full_attention' or 'sliding_attention'.
      base: of the rope, where the parameters have none.
      where: name of the file, for error messages.

    Raises:
      PretrainedError: rope parameters that are not given by kind.
    """
    given = config.get('rope_parameters') or {}
    if not all(isinstance(value, dict) or value is None for value in given.values()):
        raise PretrainedError(
            f'{where}: rope_parameters of a {config["model_type"]} model has the fields '
            f'{", ".join(given)}, expected an object for full_attention and one for '
            'sliding_attention'
        )
    others = ('rope_parameters', 'rope_scaling', 'rope_theta')
    kept = {name: value for name, value in config.items() if name not in others}
    scaling = config.get('rope_scaling') if kind == 'full_attention' else None
    own = {**(scaling or {}), **(given.get(kind) or {})}
    return {**kept, 'rope_parameters': {'rope_theta': base, **own}}


def rope_spec(config: dict[str, Any], where: object) -> str:
    """The spec string of the rotary encoding that a config declares.

    Args:
      config: the config of the checkpoint.
      where: name of the file, for error messages.

    Raises:
      PretrainedError: an unknown rope type, or a missing, unsupported or wrong parameter.
    """
    found = parameters(config, where)
    kind = found['rope_type']
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise PretrainedError(
            f'{where}: unknown rope type {kind!r}; {nearest(str(kind), ROPE_TYPES)}'
        )
    rope_type = ROPE_TYPES[kind]
    known = (*rope_type.needed, *rope_type.optional, *_COMMON)
    for name, value in found.items():  # null and a factor of 1 have no effect, so they are accepted
        if name not in known and value is not None and not (name == 'factor' and value == 1):
            raise PretrainedError(
                f'{where}: rope type {kind!r} does not read {name!r} ({value!r}); '
                f'{nearest(name, known)}'
            )
    for name in rope_type.needed:
        if found.get(name) is None:
            raise PretrainedError(f'{where}: rope type {kind!r} lacks {name!r}')
    partial, own = float(found.get('partial_rotary_factor', 1.0)), []
    if kind == 'proportional':
        if float(found.get('factor') or 1.0) != 1.0:
            raise PretrainedError(
                f'{where}: rope type {kind!r} with a factor of {found["factor"]} is not '
                'supported, expected 1'
            )
        own, partial = [f'p={partial}'], 1.0
    elif kind == 'longrope':
        own = _lists(found, config, where)
    elif rope_type.rule:
        own = _numbers(rope_type, found, trained_length(config, where))
    arguments = [f'base={float(found["rope_theta"])}']
    if partial != 1.0:
        arguments.append(f'partial={partial}')
    if rope_type.rule:
        arguments.append(f'freqs={rope_type.rule}({", ".join(own)})')
    return f'rope({", ".join(arguments)})'


def _numbers(rope_type: RopeType, found: Mapping[str, Any], trained: int) -> list[str]:
    """The arguments of a rule that has the parameters of the config under the same names."""
    # `transformers` treats an `mscale` of 0 like a missing value.
    given = [
        name
        for name in (*rope_type.needed, *rope_type.optional)
        if found.get(name) is not None and not (name.startswith('mscale') and found[name] == 0)
    ]
    number = lambda name: bool(found[name]) if name == 'truncate' else float(found[name])
    first, *others = [f'{name}={number(name)}' for name in given]
    return [first, *[f'train_len={trained}'] * rope_type.train_len, *others]


def _lists(found: Mapping[str, Any], config: dict[str, Any], where: object) -> list[str]:
    """The arguments of `longrope`."""
    own = [
        f'{ours}={tuple(map(float, found[theirs]))}'
        for ours, theirs in (('long', 'long_factor'), ('short', 'short_factor'))
    ]
    # Equal lists are one list for every length, e.g. `rope_freqs.weight` of a GGUF file.
    if found['short_factor'] == found['long_factor']:
        own.pop()
    trained, longest = trained_length(config, where), config['max_position_embeddings']
    if found.get('factor') is None and trained == longest:
        raise PretrainedError(
            f"{where}: rope type 'longrope' lacks 'original_max_position_embeddings' or 'factor'"
        )
    if found.get('attention_factor') is not None:
        own.append(f'magnitude={float(found["attention_factor"])}')
    factor = found.get('factor') or longest / trained
    return [*own, f'factor={float(factor)}', f'train_len={trained}']


def parameters_of(freqs: Any) -> dict[str, Any]:
    """The rope parameters of a frequency rule, which `rope_spec` reads.

    Raises:
      PretrainedError: `transformers` has no such rule.
    """
    matching = [
        (kind, rope_type)
        for kind, rope_type in ROPE_TYPES.items()
        if rope_type.rule == name_of(freqs)
        and all(getattr(freqs, name) == value for name, value in rope_type.only.items())
    ]
    if not matching:
        raise PretrainedError(f'transformers has no such frequencies: rope(freqs={freqs})')
    ((kind, rope_type),) = matching
    found: dict[str, Any] = {'rope_type': kind}
    if kind == 'proportional':
        return {**found, 'partial_rotary_factor': freqs.p}
    if kind == 'longrope':
        found |= {
            'factor': freqs.factor,
            'attention_factor': freqs.temperature,
            'long_factor': list(freqs.long),
            'short_factor': list(freqs.long if freqs.short is None else freqs.short),
        }
    else:
        names = (*rope_type.needed, *rope_type.optional)
        given = {name: getattr(freqs, name) for name in names}
        number = lambda value: value if isinstance(value, bool) else float(value)
        found |= {name: number(value) for name, value in given.items() if value is not None}
    if rope_type.train_len and kind != 'dynamic':
        found['original_max_position_embeddings'] = freqs.train_len
    return found
