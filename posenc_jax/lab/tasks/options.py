"""Bounds of a task's options, which stand in their annotations and are checked in one place.

    symbols: Size = 10                           # a whole number of at least 1
    slot: Count | None = None                    # at least 0, or None
    directions: Annotated[int, Ge(2), Le(64)] = 4
    ids: Literal['none', 'plain'] = 'none'       # a choice needs no bound

A number with bounds must be finite in float32, too.
"""

import dataclasses
import functools
import operator
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from posenc_jax.protocol.errors import LARGEST, SpecError, check_choice


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a number must fulfil."""

    limit: float
    words: ClassVar[str]
    fulfilled: ClassVar[Callable[[Any, Any], bool]]

    def __repr__(self):
        return f'{type(self).__name__}({self.limit})'


class Ge(Bound):
    """At least `limit`."""

    words, fulfilled = 'at least {}', operator.ge


class Gt(Bound):
    """Above `limit`."""

    words, fulfilled = 'above {}', operator.gt


class Le(Bound):
    """At most `limit`."""

    words, fulfilled = 'at most {}', operator.le


class Lt(Bound):
    """Below `limit`."""

    words, fulfilled = 'below {}', operator.lt


Size = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Finite = Annotated[float, Le(LARGEST)]


def check_options(task: Any) -> None:
    """Checks the fields of a dataclass whose annotation is a `Literal` of texts or has bounds.

    Raises:
      SpecError: a value that the annotation excludes.
    """
    for name, hint in _hints(type(task)).items():
        value, what = getattr(task, name), f'{type(task).__name__} {name}'
        if value is None:
            continue
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        for option in typing.get_args(hint) if union else (hint,):
            said = typing.get_args(option)
            if typing.get_origin(option) is Literal and isinstance(said[0], str):
                check_choice(what, value, said)
            elif typing.get_origin(option) is Annotated:
                _check_bounds(what, value, said[1:])


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except NameError:  # an annotation of a user that names what only a type checker imports
        return {}
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _check_bounds(what: str, value: float, bounds: tuple[Bound, ...]) -> None:
    inside = all(bound.fulfilled(value, bound.limit) for bound in bounds)
    if inside and abs(value) <= LARGEST:
        return
    expected = ' and '.join(bound.words.format(bound.limit) for bound in bounds)
    expected = expected.replace('above 0', 'positive') if Gt(0) in bounds else expected
    if inside or bounds == (Le(LARGEST),):
        expected = f'a finite number of 32 bits, at most {LARGEST:.4g}'
    raise SpecError(f'{what} must be {expected}, got {value}')
