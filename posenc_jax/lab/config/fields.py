"""The fields of a config: their names, types and ranges, checked without building anything."""

from typing import Any

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults
from posenc_jax.lab.config.protocols import CHOICES
from posenc_jax.lab.tasks.task import SPLITS
from posenc_jax.protocol.errors import LARGEST, SpecError, check_choice, nearest, quoted

MAX_SEGMENTS = 64
PATTERNS = ('pattern', 'source_pattern')
MAX_PATTERN = 256  # spec strings of a pattern; each of its layers is traced separately


def fields_of(config: ConfigDict, prefix: str = '') -> dict[str, Any]:
    """A flat dict from dotted name to value, of every field of a config."""
    fields = {}
    for key, value in config.items():
        fields.update(
            fields_of(value, f'{prefix}{key}.')
            if isinstance(value, ConfigDict)
            else {prefix + key: value}
        )
    return fields


def encoding_label(config: ConfigDict) -> str:
    """The encodings of a run, or the network of a field, as tables and the start of training show
    them.

    Example:
      >>> from posenc_jax.lab.config import defaults
      >>> encoding_label(defaults.get_config())
      'rope()'
    """
    if config.model.kind == 'field':
        return config.field + (f' of {config.features}' if config.features else '')
    label = ' / '.join(config.pattern) or config.encoding
    if config.features:
        label = f'{label} of {config.features}'
    if config.model.kind != 'encoder_decoder':
        return label
    source = ' / '.join(config.source_pattern) or config.source_encoding or config.encoding
    return f'{label}, source {source}, cross {config.cross}'


def check_fields(config: ConfigDict) -> None:
    """Checks that a config has exactly the fields of the defaults, each of the same type, and that
    its numbers fit 32 bits.

    Raises:
      ValueError: a field is wrong; the message names it and what was expected.
    """
    if not isinstance(config, ConfigDict):
        raise ValueError(
            'a config is a ConfigDict as lab/config/defaults.py makes it, got '
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
            f'the config lacks the field {missing[0]!r}; start from lab/config/defaults.py'
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
            and name not in ('encoding', *PATTERNS, 'extend', 'task', 'features', 'field')
        ):
            raise ValueError(
                f'{name} must be text of one line without control characters, got {quoted(value)}'
            )
    if name in PATTERNS and not all(isinstance(spec, str) for spec in value):
        raise ValueError(f'{name} must hold spec strings, got {quoted(value)}')
    if name in PATTERNS and len(value) > MAX_PATTERN:
        raise ValueError(f'{name} must hold at most {MAX_PATTERN} spec strings, got {len(value)}')


def check_numbers(config: ConfigDict) -> None:
    """Checks the ranges of `train`, `eval`, `mesh`, `cluster` and the seed.

    Raises:
      ValueError: a number is out of its range; the message names the field and the range.
    """
    train, fields = config.train, fields_of(config)

    def need(condition, name, expected):
        if not condition:
            raise ValueError(f'{name} must be {expected}, got {fields[name]!r}')

    def at_least(least, group, names):
        for name in names.split():
            need(config[group][name] >= least, f'{group}.{name}', f'at least {least}')

    at_least(1, 'train', 'steps batch length min_length accumulate log_every save_every keep')
    at_least(1, 'train', 'eval_batches')
    at_least(0, 'train', 'warmup eval_every weight_decay clip z_loss segment memory')
    below = f'below train.length = {train.length}, or 0'
    need(train.segment < train.length, 'train.segment', below)
    need(
        train.length <= MAX_SEGMENTS * (train.segment or train.length),
        'train.segment',
        f'0, or at least train.length / {MAX_SEGMENTS}, since every segment is traced on its own',
    )
    need(train.segment or not train.memory, 'train.memory', '0 where train.segment is 0')
    decodes = config.model.kind == 'decoder'
    kind = f'0 for a model of kind {config.model.kind!r}'
    need(decodes or not train.segment, 'train.segment', kind)
    need(train.lr > 0, 'train.lr', 'positive')
    need(0 <= train.end_lr_fraction <= 1, 'train.end_lr_fraction', 'between 0 and 1')
    for name in ('b1', 'b2'):
        need(0 <= train[name] < 1, f'train.{name}', 'in [0, 1)')
    need(train.warmup <= train.steps, 'train.warmup', f'at most train.steps = {train.steps}')
    parts = f'a multiple of train.accumulate = {train.accumulate}'
    need(train.batch % train.accumulate == 0, 'train.batch', parts)
    need(0 <= config.seed < 2**32, 'seed', f'between 0 and {2**32 - 1}')
    check_evaluation(config.eval)
    at_least(0, 'mesh', 'cpu_devices')
    at_least(1, 'mesh', 'fsdp tensor sequence')
    devices = config.mesh.data
    need(devices >= 1 or devices == -1, 'mesh.data', 'at least 1, or -1 for the devices left')
    start, silence = config.cluster.start_timeout, config.cluster.peer_timeout
    need(10 <= start <= 86400, 'cluster.start_timeout', 'between 10 and 86400 seconds')
    seconds = 'between 10 and 86400 seconds, or 0 for none'
    need(silence == 0 or 10 <= silence <= 86400, 'cluster.peer_timeout', seconds)
    status = config.cluster.stop_status
    other = 'between 3 and 125, since 1 and 2 are those of errors, or 0'
    need(status == 0 or 3 <= status <= 125, 'cluster.stop_status', other)


def check_evaluation(settings: ConfigDict) -> None:
    """Checks each field of `config.eval` alone.

    Raises:
      SpecError: a field is wrong; the message says what was expected.
    """
    for name in ('tokens', 'batch', 'stride', 'buckets', 'samples'):
        if settings[name] < 1:
            raise SpecError(f'eval.{name} must be at least 1, got {quoted(settings[name])}')
    for length in settings.lengths:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise SpecError(
                f'eval.lengths must be whole numbers of at least 1, got {quoted(settings.lengths)}'
            )
    if not settings.protocols:
        raise SpecError(f'eval.protocols is empty; choose among {", ".join(CHOICES)}')
    for name in settings.protocols:
        check_choice('protocol', name, CHOICES)
    for depth in settings.depths:
        if isinstance(depth, bool) or not isinstance(depth, (int, float)) or not 0 <= depth <= 1:
            raise SpecError(
                'eval.depths must be numbers from 0 (first) to 1 (last), got '
                f'{quoted(settings.depths)}'
            )
    if len(set(settings.depths)) < len(settings.depths):
        raise SpecError(f'eval.depths names a depth twice: {quoted(settings.depths)}')
    check_choice('eval.split', settings.split, SPLITS)
    check_choice('eval.positions', settings.positions, ('sampled', 'first'))
