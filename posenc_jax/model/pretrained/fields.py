"""What a public checkpoint may say in its fields: every value goes through `check`, which states
what is expected.
"""

import dataclasses
import difflib
import json
import pathlib
import reprlib
from collections.abc import Callable, Iterable
from typing import Any


class PretrainedError(ValueError):
    """A checkpoint that cannot be used: the message names file, field or tensor, what was found and
    what was expected.
    """


@dataclasses.dataclass(frozen=True)
class Kind:
    """Which values a field may have, and how an error says it."""

    says: str
    holds: Callable[[Any], bool]


def whole(least: int, most: int) -> Kind:
    return Kind(
        f'a whole number from {least} to {most}',
        lambda value: type(value) is int and least <= value <= most,
    )


def number(least: float, most: float) -> Kind:
    """Whole ones too; NaN lies in no range."""
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
    """`value`, if it is of that kind.

    Args:
      value: of the field.
      kind: what is expected.
      where: file, for the message.
      name: of the field.

    Raises:
      PretrainedError: it is of another kind.

    Example:
      >>> check(2, whole(1, 8), 'config.json', 'n_head')
      2
      >>> check(True, whole(1, 8), 'config.json', 'n_head')
      Traceback (most recent call last):
      posenc_jax.model.pretrained.fields.PretrainedError: config.json: n_head=True, expected a whole
        number from 1 to 8
    """
    if not kind.holds(value):
        raise PretrainedError(f'{where}: {name}={shown(value)}, expected {kind.says}')
    return value


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 60
_brief.maxlevel = 2


def shown(value: Any) -> str:
    """A value as messages print it: on one line, of bounded length and depth.

    Example:
      >>> shown([1] * 1000)
      '[1, 1, 1, 1, 1, 1, ...]'
    """
    return _brief.repr(value)


def near(name: str, choices: Iterable[str]) -> str:
    """The ending of a message: the nearest of many choices, where one is near.

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


LARGEST_JSON = 64 * 2**20  # bytes; that of the largest public vocabulary has about half


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
      FileNotFoundError: there is none.
      PretrainedError: it is too large, nested too deep, not JSON, or something else than an object.
    """
    if not is_file(file):
        raise FileNotFoundError(
            f'{file} is missing: {file.parent} is not a Hugging Face checkpoint'
        )
    try:
        if (size := file.stat().st_size) > LARGEST_JSON:
            raise PretrainedError(f'{file} has {size} bytes, expected at most {LARGEST_JSON}')
        return parse_json(file.read_bytes(), file)
    except OSError as error:
        raise PretrainedError(f'{file} cannot be read: {error.strerror}') from None


def parse_json(data: bytes, where: object) -> dict[str, Any]:
    """The object that bytes of a file spell."""
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
    """Whether there is such a file; no name is too long to be asked for."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: pathlib.Path) -> bool:
    """Whether there is such a directory."""
    try:
        return path.is_dir()
    except OSError:
        return False
