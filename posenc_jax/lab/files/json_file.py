"""Strict reading of JSON files, which people edit and which can be damaged. Every error is one line
that names the file and the field.
"""

import itertools
import json
import math
import os
import pathlib
from typing import Any

from posenc_jax.lab.files import regular
from posenc_jax.protocol.errors import quoted

MOST = 2**20  # bytes of a file
LARGEST = 2**63  # bound of whole numbers
_KINDS = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a finite number',
    str: 'a string',
    tuple: 'a list',
}


def read_object(path: pathlib.Path, what: str) -> dict[str, Any]:
    """Reads the JSON object in a file.

    Args:
      path: the file.
      what: what the file should be, for messages, e.g. 'a config'.

    Raises:
      FileNotFoundError: there is no file.
      ValueError: the file is larger than 1 MiB, is not JSON text, does not hold an object, or has
        an object in which a name appears twice.
    """
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist')
    if not path.is_file():
        raise ValueError(f'{path} is not {what}: it is not a file')
    with path.open('rb') as file:
        size = lambda: file.seek(0, os.SEEK_END)
        told = lambda: f'{path} is not {what}: it has {size()} bytes, expected at most {MOST}'
        content = regular.read_most(file, MOST, told)
    try:
        found = json.loads(content.decode(), object_pairs_hook=_without_doubles)
    except ValueError as error:
        raise ValueError(f'{path} is not {what}: {error}') from None
    except RecursionError:
        raise ValueError(
            f'{path} is not {what}: its lists or objects are nested too deeply'
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f'{path} is not {what}: it holds a {type(found).__name__}')
    return found


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in found if names.count(name) > 1)
        raise ValueError(
            f'the name {double[:80]!r} appears {names.count(double)} times in one object'
        )
    return found


def typed(value: Any, kind: type | tuple[type, ...], name: str, item: Any = None) -> Any:
    """Checks that a JSON value has a type; returns it with lists as tuples, and as a float where a
    float is expected.

    Args:
      value: from a file.
      kind: bool, int, float, str or tuple; or a tuple of types, for a list with such members.
      name: dotted name of the field, for messages.
      item: for a tuple, the type of its items; a tuple of types for items that are lists with
        members of these types.

    Raises:
      ValueError: the value is of another type, or a number is not finite or too large.
    """
    if isinstance(kind, tuple):
        if not isinstance(value, list) or len(value) != len(kind):
            raise ValueError(f'{name} is {quoted(value)}, expected a list of {len(kind)} items')
        return tuple(
            typed(member, own, f'{name}[{number}]')
            for number, (member, own) in enumerate(zip(value, kind))
        )
    if kind is tuple and isinstance(value, list):
        return tuple(
            typed(member, item, f'{name}[{number}]') for number, member in enumerate(value)
        )
    if kind is float and type(value) is int and abs(value) < LARGEST:
        value = float(value)
    if type(value) is not kind or kind is float and not math.isfinite(value):
        raise ValueError(f'{name} is {quoted(value)}, expected {_KINDS[kind]}')
    if kind is int and abs(value) >= LARGEST:
        raise ValueError(f'{name} is {quoted(value)}, expected a whole number below 2**63')
    return value


def listed(lines: list[str], most: int = 6) -> str:
    """Joins lines into one; of more than `most` lines only the first are shown, and the others are
    counted.
    """
    more = [f'and {len(lines) - most} more'] if len(lines) > most else []
    return '; '.join([*lines[:most], *more])


def free_name(path: pathlib.Path) -> pathlib.Path:
    """An unused name for a damaged file: PATH.damaged, PATH.damaged1, PATH.damaged2, ..."""
    names = (path.with_name(f'{path.name}.damaged{number or ""}') for number in itertools.count())
    return next(name for name in names if not name.exists())
