"""What the annotations of a task's options say: choices and bounds, checked in one place."""

import dataclasses
import functools
import operator
import types
import typing
from typing import Annotated, Any, Literal, NamedTuple

from posenc_jax.protocol.errors import LARGEST, SpecError, check_choice


class Ge(NamedTuple):
    """`Annotated[int, Ge(1)]`: at least 1."""

    bound: float


class Gt(NamedTuple):
    """`Annotated[float, Gt(0)]`: above 0."""

    bound: float


class Le(NamedTuple):
    """`Annotated[int, Le(64)]`: at most 64."""

    bound: float


class Lt(NamedTuple):
    """`Annotated[float, Lt(0.5)]`: below 0.5."""

    bound: float


FINITE = 'finite'  # what all numbers with bounds are
Real = Annotated[float, FINITE]
Chance = Annotated[float, Ge(0), Le(1)]  # a probability, or a share of a whole


def check_options(task: Any) -> None:
    """Checks the fields of a dataclass whose annotation is a `Literal` of texts or has bounds.

    A number with bounds must be finite in float32, too. None passes where the annotation allows it.

    Raises:
      SpecError: a value that the annotation excludes, with the nearest one.
    """
    for name, hint in _hints(type(task)).items():
        value, what = getattr(task, name), f'{type(task).__name__}: {name}'
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


_SAID = {
    Ge: (operator.ge, 'at least {}'),
    Gt: (operator.gt, 'above {}'),
    Le: (operator.le, 'at most {}'),
    Lt: (operator.lt, 'below {}'),
}


def _check_bounds(what: str, value: float, bounds: tuple) -> None:
    found = {type(bound): bound.bound for bound in bounds if bound != FINITE}
    inside = all(_SAID[kind][0](value, bound) for kind, bound in found.items())
    if inside and abs(value) <= LARGEST:
        return
    expected = ' and '.join(_SAID[kind][1].format(bound) for kind, bound in found.items())
    if found == {Gt: 0}:
        expected = 'positive'
    if found.keys() == {Ge, Le} and value == value:
        least, most = found[Ge], found[Le]
        nearest = min(max(value, least), most)
        raise SpecError(f'{what} must lie in {least} .. {most}, got {value}; nearest: {nearest}')
    raise SpecError(f'{what} must be {expected or "a finite number of 32 bits"}, got {value}')
