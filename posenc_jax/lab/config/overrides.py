"""Changes fields of a config, by `--config.NAME=VALUE` arguments of training and evaluation."""

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from posenc_jax.protocol.errors import LARGEST, SpecError, near, nearest, quoted

# Fields of the model that say how it is computed. Its weights mean the same with every value, and
# its numbers are the same up to rounding.
COMPUTING = ('model.block', 'model.implementation', 'model.precision', 'model.remat')
# The fields that an evaluation can change. The others describe the trained weights, which such a
# change would leave as they are.
CHANGEABLE = ('data', 'eval', 'extend', 'mesh', 'task', *COMPUTING)
_NUMBERS = {int, float}


def read_overrides(
    arguments: Iterable[str], near: Callable[[str], str] = lambda argument: ''
) -> dict[str, str]:
    """Reads command-line arguments of the form `--config.NAME=VALUE` as dotted names -> texts.

    Args:
      arguments: the arguments.
      near: the end of the message about an argument that names no field, see `Parser.near`.

    Raises:
      ValueError: an argument of another form.
    """
    overrides = {}
    for argument in arguments:
        match = re.fullmatch(r'--?config\.([\w.]+)=(.*)', argument, re.DOTALL)
        if match is None:
            from posenc_jax.lab.config.listing import fields_named

            fields = fields_named(argument.lstrip('-').partition('=')[0])
            raise ValueError(
                f'cannot read {quoted(argument)}; a field of the config is --config.NAME=VALUE'
                + (f'; did you mean {" or ".join(fields)}?' if fields else near(argument))
            )
        overrides[match[1]] = match[2]
    return overrides


def apply_overrides(config: Any, overrides: Mapping[str, Any]) -> Any:
    """A copy of the config of a run with the fields replaced that an evaluation changes.

    Args, Raises: as `replaced`; also SpecError for a field outside `CHANGEABLE`.
    """
    changed = replaced(config, overrides)
    for name in overrides:
        if not {name, name.split('.')[0]} & set(CHANGEABLE):
            raise SpecError(
                f'{name} belongs to the checkpoint; an evaluation can change '
                f'{", ".join(CHANGEABLE)}'
            )
    return changed


def of_computing(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of `COMPUTING` fields."""
    return {name: value for name, value in overrides.items() if name in COMPUTING}


def replaced(config: Any, overrides: Mapping[str, Any]) -> Any:
    """A copy of a config in which fields are replaced.

    Args:
      config: an ml_collections ConfigDict.
      overrides: dotted names -> values. A string is read as the type that the field has, e.g.
        '64,128' or '(64, 128)' as a tuple.

    Raises:
      SpecError: a field does not exist (the message has the nearest names), is a group of fields,
        or has another type.
    """
    from ml_collections import ConfigDict

    fields = config.to_dict()
    for name, value in overrides.items():
        *path, last = name.split('.')
        place = fields
        for depth, part in enumerate([*path, last]):
            if not isinstance(place, dict) or part not in place:
                raise SpecError(f'config has no field {quoted(name)}; {_meant(name, fields)}')
            if depth < len(path):
                place = place[part]
        if isinstance(place[last], dict):
            raise SpecError(
                f'{name} is a group of fields: {", ".join(f"{name}.{k}" for k in place[last])}'
            )
        place[last] = _read(name, value, place[last])
    return ConfigDict(fields, convert_dict=True)


def _meant(name: str, fields: Mapping[str, Any]) -> str:
    """The ending of the message about a field that does not exist: the fields that are nearest in
    every part of the name; those that end with the same word; or what there is to choose from.
    """
    *groups, last = name.split('.')
    within, place = '', fields
    for part in groups:
        inner = [key for key, value in place.items() if isinstance(value, Mapping)]
        close = [part] if part in place else near(part, inner)
        if not close:
            break
        within, place = f'{within}{close[0]}.', place[close[0]]
        if not isinstance(place, Mapping):  # `name` goes on behind a field
            return f'did you mean {within[:-1]!r}?'
    if last in place:
        return f'did you mean {within + last!r}?'
    same = [field for field in _names(fields) if field.split('.')[-1] == last]
    close = near(last, place, cutoff=0.8 if same else 0.5)  # eval.length: eval.lengths too
    if meant := [within + key for key in close[:1]] + same:
        return f'did you mean {" or ".join(map(repr, meant))}?'
    return nearest('', [within + key for key in place])


def _names(fields: Mapping[str, Any], within: str = '') -> list[str]:
    """The dotted names of all fields, without the groups."""
    return [
        name
        for key, value in fields.items()
        for name in (
            _names(value, f'{within}{key}.') if isinstance(value, Mapping) else [within + key]
        )
    ]


def _read(name: str, value: Any, old: Any) -> Any:
    expected = 'True or False' if isinstance(old, bool) else f'of type {type(old).__name__}'
    problem = SpecError(f'{name}={quoted(value)} is not {expected} (its value is {quoted(old)})')
    if isinstance(old, (tuple, list)):
        items = items_of(value) if isinstance(value, str) else value
        if not isinstance(items, (tuple, list)):
            raise problem
        wanted = {type(item) for item in old}
        if wanted & _NUMBERS:
            wanted |= _NUMBERS  # the check of the field decides between whole and other numbers
        if any(type(item) not in wanted for item in items) and wanted:
            raise problem
        return tuple(items)
    if isinstance(value, str) and not isinstance(old, str):
        value = _literal(value.strip())
    if (
        isinstance(old, float)
        and isinstance(value, int)
        and not isinstance(value, bool)
        and abs(value) <= LARGEST
    ):
        value = float(value)
    if type(value) is not type(old):
        raise problem
    return value


def items_of(text: str) -> tuple[Any, ...]:
    """The items of a tuple as written on a command line, with or without brackets around it. Commas
    within parentheses do not separate items. As in Python, '((2, 8),)' is a tuple of one tuple.
    """
    pieces = _pieces(text)
    if len(pieces) == 1 and pieces[0][:1] + pieces[0][-1:] == '()':
        return items_of(pieces[0][1:-1])
    if len(pieces) == 1 and pieces[0][:1] + pieces[0][-1:] == '[]':
        pieces = _pieces(pieces[0][1:-1])
    return tuple(_literal(piece) for piece in pieces if piece)


def _pieces(text: str) -> list[str]:
    """What stands between the commas outside brackets."""
    pieces, depth = [''], 0
    for letter in text:
        depth += (letter in '([') - (letter in ')]')
        if letter == ',' and depth == 0:
            pieces.append('')
        else:
            pieces[-1] += letter
    return [piece.strip() for piece in pieces]


def _literal(text: str) -> Any:
    try:
        return (
            {'true': True, 'false': False}.get(text.lower())
            if text.lower() in ('true', 'false')
            else ast.literal_eval(text)
        )
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):  # not a literal
        return text
