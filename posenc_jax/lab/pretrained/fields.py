"""Kinds of values for the fields of public checkpoints, and `check`, which compares a value with
its kind.
"""

import dataclasses
import difflib
import json
import pathlib
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

from posenc_jax.lab.files import paths


class PretrainedError(ValueError):
    """A checkpoint that cannot be used. The message names the file and the field or tensor, the
    value that was found and what was expected.
    """


@dataclasses.dataclass(frozen=True)
class Kind:
    """The values that a field may have.

    Attributes:
      says: the expected values in words, for error messages.
      holds: whether a value is of this kind.
    """

    says: str
    holds: Callable[[Any], bool]


def whole(least: int, most: int) -> Kind:
    return Kind(
        f'a whole number from {least} to {most}',
        lambda value: type(value) is int and least <= value <= most,
    )


def number(least: float, most: float) -> Kind:
    """An int or float in a range. NaN is in no range."""
    return Kind(
        f'a number from {least:g} to {most:g}',
        lambda value: type(value) in (int, float) and least <= value <= most,
    )


def text(most: int, least: int = 0) -> Kind:
    return Kind(
        f'a text of {least} to {most} characters',
        lambda value: isinstance(value, str) and least <= len(value) <= most,
    )


def one_of(*choices: Any) -> Kind:
    return Kind(
        ' or '.join(map(repr, choices)),
        lambda value: any(type(value) is type(c) and value == c for c in choices),
    )


def several(kind: Kind, most: int) -> Kind:
    def holds(value):
        return isinstance(value, list) and len(value) <= most and all(map(kind.holds, value))

    return Kind(f'a list of at most {most} entries, each {kind.says}', holds)


def maybe(kind: Kind) -> Kind:
    return Kind(f'{kind.says}, or null', lambda value: value is None or kind.holds(value))


FLAG = Kind('true or false', lambda value: isinstance(value, bool))
OBJECT = Kind('an object', lambda value: isinstance(value, dict))
LIST = Kind('a list', lambda value: isinstance(value, list))


def check(value: Any, kind: Kind, where: object, name: str) -> Any:
    """Returns `value` if it is of the given kind.

    Args:
      value: value of the field.
      kind: the expected kind.
      where: name of the file, for the message.
      name: name of the field.

    Raises:
      PretrainedError: the value is of another kind.

    Example:
      >>> check(2, whole(1, 8), 'config.json', 'n_head')
      2
      >>> check(True, whole(1, 8), 'config.json', 'n_head')
      Traceback (most recent call last):
      posenc_jax.lab.pretrained.fields.PretrainedError: config.json: n_head=True, expected a whole
        number from 1 to 8
    """
    if not kind.holds(value):
        raise PretrainedError(f'{where}: {name}={shown(value)}, expected {kind.says}')
    return value


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 60
_brief.maxlevel = 2


def shown(value: Any) -> str:
    """A value as text for a message: on one line, with bounded length and depth."""
    return _brief.repr(value)


def near(name: str, choices: Iterable[str]) -> str:
    """The end of a message that suggests the most similar choice; empty if none is similar.

    Example:
      >>> (
      ...     near('model.nrom.weight', ['model.norm.weight', 'lm_head.weight']),
      ...     near('x', ['lm_head.weight']),
      ... )
      ("; did you mean 'model.norm.weight'?", '')
    """
    found = difflib.get_close_matches(
        name[:200], sorted({choice[:200] for choice in choices}), n=1, cutoff=0.5
    )
    return f'; did you mean {found[0]!r}?' if found else ''


LARGEST_JSON = 64 * 2**20  # bytes; the file of the largest public vocabulary has about half of it


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      FileNotFoundError: the file does not exist.
      PretrainedError: the file is too large, nested too deep, not JSON, or not an object.
    """
    if not is_file(file):
        raise FileNotFoundError(
            f'{file} is missing: {file.parent} is not a Hugging Face checkpoint'
        )
    try:
        if (size := paths.size(file)) > LARGEST_JSON:
            raise PretrainedError(f'{file} has {size} bytes, expected at most {LARGEST_JSON}')
        return parse_json(file.read_bytes(), file)
    except OSError as error:
        raise PretrainedError(f'{file} cannot be read: {error.strerror}') from None


def parse_json(data: bytes, where: object) -> dict[str, Any]:
    """The JSON object in the bytes of a file."""
    try:
        found = json.loads(data.decode())
    except RecursionError:
        raise PretrainedError(
            f'{where} is nested too deep, expected at most some hundred brackets within one another'
        ) from None
    except ValueError as error:
        raise PretrainedError(f'{where} is not JSON: {error}') from None
    if not isinstance(found, dict):
        raise PretrainedError(f'{where} holds a {type(found).__name__}, expected an object')
    return found


def is_file(path: pathlib.Path) -> bool:
    """Whether there is such a file. A name too long for the file system counts as no file. Raises
    OSError for a bucket that cannot be reached.
    """
    return _answer(path, path.is_file)


def is_folder(path: pathlib.Path) -> bool:
    """Whether there is such a directory; names as for `is_file`."""
    return _answer(path, path.is_dir)


def _answer(path: pathlib.Path, asked: Callable[[], bool]) -> bool:
    """What a question about a path is answered, with the errors of `is_file`."""
    if not paths.is_local(path):
        with paths.reached(path):
            return asked()
    try:
        return asked()
    except OSError:
        return False
