"""The rotary encoding that a checkpoint's config declares, as a spec string."""

from numbers import Real
from typing import Any

from posenc_jax.lab.pretrained.fields import PretrainedError
from posenc_jax.protocol.errors import nearest

# The parameters of each rope type that are read.
ROPE_TYPES = {
    'default': (),
    'linear': ('factor',),
    'dynamic': ('factor',),
    'yarn': (
        'factor',
        'beta_fast',
        'beta_slow',
        'attention_factor',
        'mscale',
        'mscale_all_dim',
        'truncate',
    ),
    'longrope': ('factor', 'long_factor', 'short_factor', 'attention_factor'),
    'llama3': ('factor', 'low_freq_factor', 'high_freq_factor'),
    'proportional': ('factor',),
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

_NO_NUMBERS = ('rope_type', 'type', 'finetuned', 'truncate')


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


def is_number(value: object) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def parameters(config: dict[str, Any], where: object = 'the checkpoint') -> dict[str, Any]:
    """All rope parameters of a config: those in `rope_parameters` (new checkpoints), and those in
    `rope_theta`, `partial_rotary_factor` and `rope_scaling` (older checkpoints).
    """
    for name in ('rope_scaling', 'rope_parameters'):
        if not isinstance(config.get(name) or {}, dict):
            raise PretrainedError(
                f'{where}: {name} is {config[name]!r}, expected an object or null'
            )
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

    Example:
      >>> config = {'rope_parameters': {'full_attention': {'rope_theta': 7.0}}}
      >>> rope_of_kind(config, 'full_attention', 1e6, '')
      {'rope_parameters': {'rope_theta': 7.0}}
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
    known = (*ROPE_TYPES[kind], *_COMMON)
    for name, value in found.items():  # null and a factor of 1 have no effect, so they are accepted
        if name not in known and value is not None and not (name == 'factor' and value == 1):
            raise PretrainedError(
                f'{where}: rope type {kind!r} does not read {name!r} ({value!r}); '
                f'{nearest(name, known)}'
            )
        several = name in ('long_factor', 'short_factor')
        if name in known and name not in _NO_NUMBERS and value is not None:
            if not (
                isinstance(value, list) and all(map(is_number, value))
                if several
                else is_number(value)
            ):
                raise PretrainedError(
                    f'{where}: {name}={value!r}, expected '
                    f'{"a list of numbers" if several else "a number"}'
                )

    def need(name):
        if found.get(name) is None:
            raise PretrainedError(f'{where}: rope type {kind!r} lacks {name!r}')
        return found[name]

    partial = float(found.get('partial_rotary_factor', 1.0))
    number = lambda name: f'{name}={float(need(name))}'
    optional = lambda *names: [
        f'{name}={float(found[name])}' for name in names if found.get(name) is not None
    ]
    trained = trained_length(config, where)
    length = f'train_len={trained}'
    if kind == 'default':
        freqs = ''
    elif kind == 'linear':
        freqs = f'pi({number("factor")})'
    elif kind == 'dynamic':
        freqs = f'dynamic_ntk({number("factor")}, {length})'
    elif kind == 'yarn':
        # `transformers` treats 0 like a missing value.
        found.update({name: found.get(name) or None for name in ('mscale', 'mscale_all_dim')})
        extras = optional('beta_fast', 'beta_slow', 'attention_factor', 'mscale', 'mscale_all_dim')
        if found.get('truncate') is not None:
            extras.append(f'truncate={bool(found["truncate"])}')
        freqs = f'yarn({", ".join([number("factor"), length, *extras])})'
    elif kind == 'llama3':
        freqs = (
            f'llama3_rope({number("factor")}, {length}, {number("low_freq_factor")}, '
            f'{number("high_freq_factor")})'
        )
    elif kind == 'longrope':
        lists = [
            f'{ours}={tuple(map(float, need(theirs)))}'
            for ours, theirs in (('long', 'long_factor'), ('short', 'short_factor'))
        ]
        # Equal lists are one list for every length, e.g. `rope_freqs.weight` of a GGUF file.
        if need('short_factor') == need('long_factor'):
            lists.pop()
        if found.get('factor') is None and trained == config['max_position_embeddings']:
            raise PretrainedError(
                f"{where}: rope type {kind!r} lacks 'original_max_position_embeddings' or 'factor'"
            )
        factor = found.get('factor') or config['max_position_embeddings'] / trained
        if found.get('attention_factor') is not None:
            lists.append(f'magnitude={float(found["attention_factor"])}')
        freqs = f'longrope({", ".join([*lists, f"factor={float(factor)}", length])})'
    else:
        if float(found.get('factor') or 1.0) != 1.0:
            raise PretrainedError(
                f'{where}: rope type {kind!r} with a factor of {found["factor"]} is not '
                'supported, expected 1'
            )
        freqs, partial = f'p_rope(p={partial})', 1.0
    arguments = [f'base={float(found["rope_theta"])}']
    if partial != 1.0:
        arguments.append(f'partial={partial}')
    if freqs:
        arguments.append(f'freqs={freqs}')
    return f'rope({", ".join(arguments)})'
