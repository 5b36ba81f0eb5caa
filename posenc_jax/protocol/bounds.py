"""Bounds of arguments, written in annotations and checked in one place.

    from posenc_jax.protocol.bounds import Divides, Ge, Le, Positive, Size

    def __init__(
        self,
        width: Size = 32,                                # a whole number of at least 1
        scale: Positive | None = None,                   # a finite number above 0, or None
        layout: Literal['half', 'interleaved'] = 'half',
        slopes: tuple[Positive, ...] = (),               # each entry is checked
        eval_len: Annotated[int, Ge(1), Le('max_len')] | None = None,
        groups: Annotated[int, Ge(1), Divides('width')] = 1,
        max_len: Size = 64,
    ): ...

A bound stands behind the type in `Annotated`; a limit is a number or the name of another argument.
`Size`, `Count`, `Positive` and those beside them are the usual ones. `Meaning('...')` explains an
argument in the error message and in the catalogue. A bound makes the type strict too: True is no
number, and a number must be finite in float32. Choices of a `Literal` need no bound.

Every constructor of an encoding is checked, and every class or function that is registered (frozen
dataclasses too), before its own code runs; nothing calls this module by hand. A constructor that
hands arguments to the one of its base class may leave the bounds to that one. `described` gives the
words of the catalogue. A method checks in its own code only what no annotation can say.

The error is `KEY ARGUMENT must be EXPECTED, got FOUND`, a ValueError; for a wrong choice it is a
SpecError that names the nearest one.
"""

import dataclasses
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from posenc_jax.protocol.errors import LARGEST, SpecError, nearest, quoted


class _Context:
    """Default of a parameter that the surrounding model supplies."""

    def __repr__(self):
        return 'CONTEXT'


CONTEXT: Any = _Context()
Limit = float | str  # a number, or the name of another argument
Arguments = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a value must fulfil; a subclass defines `words` and `fulfilled`."""

    limit: Limit
    words = '{}'

    def fulfilled(self, value: Any, limit: Any) -> bool:
        """Whether a value keeps to the bound."""
        raise NotImplementedError

    def said(self, limit: Any = None) -> str:
        """The bound in words; `limit` is the value of the argument that it names."""
        if limit is None or not isinstance(self.limit, str):
            return self.words.format(self.limit)
        return self.words.format(f'{self.limit}={limit}')

    def remedy(self, value: Any, limit: Any) -> str:
        """The nearest valid choice, as the end of a message, where the words do not show it."""
        return ''


class Ge(Bound):
    """At least `limit`."""

    words = 'at least {}'

    def fulfilled(self, value, limit):
        return value >= limit


class Gt(Bound):
    """Above `limit`."""

    words = 'above {}'

    def fulfilled(self, value, limit):
        return value > limit

    def said(self, limit=None):
        return 'positive' if self.limit == 0 else super().said(limit)


class Le(Bound):
    """At most `limit`."""

    words = 'at most {}'

    def fulfilled(self, value, limit):
        return value <= limit


class Lt(Bound):
    """Below `limit`."""

    words = 'below {}'

    def fulfilled(self, value, limit):
        return value < limit


class Divides(Bound):
    """A whole number that divides `limit`."""

    words = 'a divisor of {}'

    def fulfilled(self, value, limit):
        return limit % value == 0

    def remedy(self, value, limit):
        divisors = [n for n in range(1, min(limit, 4096) + 1) if limit % n == 0]
        return f'; the nearest is {min(divisors, key=lambda n: abs(n - value))}'


class Multiple(Bound):
    """A multiple of `limit`; `Multiple(2)` is an even number."""

    words = 'a multiple of {}'

    def fulfilled(self, value, limit):
        return value % limit == 0

    def said(self, limit=None):
        return 'even' if self.limit == 2 else super().said(limit)

    def remedy(self, value, limit):
        return f'; the nearest is {max(1, round(value / limit)) * limit}'


class Entries(Bound):
    """A tuple of `limit` entries; `Entries('heads')` has one for each head."""

    words = 'a tuple of {} entries'

    def fulfilled(self, value, limit):
        return len(value) == limit


class IsFinite(Bound):
    """Finite in float32; every bounded float is."""

    words = 'a finite number of 32 bits, at most {:.4g}'

    def fulfilled(self, value, limit):
        return abs(value) <= limit


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What an argument is, for messages and the catalogue."""

    text: str


Size = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Symbols = Annotated[int, Ge(1), Le(65_536)]  # of one kind in a vocabulary
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Finite = Annotated[float, IsFinite(LARGEST)]
Factor = Annotated[float, Ge(1), Meaning('new length / trained length')]
PerHead = Annotated[tuple[Positive, ...], Entries('heads')]
Base = Annotated[float, Ge(1), Meaning('the base of rotary frequencies')]
TrainLen = Annotated[int, Ge(1), Meaning('the trained length in tokens')]


@dataclasses.dataclass(frozen=True)
class _Problem:
    """Why a value is refused.

    Attributes:
      expected: the end of 'must be ...'.
      remedy: the nearest valid choice, or ''.
      fits: the type is right. Of several options, the message is about one whose type is.
      choice: `expected` names the nearest choices instead.
      entry: the entry of a tuple that is wrong, with ' in ' behind it.
    """

    expected: str
    remedy: str = ''
    fits: bool = True
    choice: bool = False
    entry: str = ''


def _problem(hint: Any, value: Any, arguments: Arguments) -> _Problem | None:
    """Why a value does not fulfil an annotation; None if it does, or if nothing is bounded."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _problem(inner[0], value, arguments) or _out_of_bounds(*inner, value, arguments)
    if origin is Literal:
        fits = any(type(choice) is type(value) and choice == value for choice in inner)
        if fits or not all(isinstance(choice, str) for choice in inner):
            return None if fits else _Problem(_named(hint))
        return _Problem(nearest(str(value), inner), choice=True)
    if origin in (typing.Union, types.UnionType):
        found = [_problem(option, value, arguments) for option in inner]
        problems = [problem for problem in found if problem is not None]
        if len(problems) < len(found):
            return None
        fitting = next((problem for problem in problems if problem.fits), problems[0])
        others = [_named(o) for o in inner if o is type(None) or typing.get_origin(o) is Literal]
        also = ''.join(f'; {other} is accepted too' for other in others)
        return dataclasses.replace(fitting, remedy=fitting.remedy + also)
    if origin is tuple and inner:
        if not isinstance(value, tuple | list):
            return _Problem('a tuple', fits=False)
        each = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(each) != len(value):
            return _Problem(f'a tuple of {len(each)} entries')
        for option, entry in zip(each, value):
            if problem := _problem(option, entry, arguments):
                inside = problem.entry or f'{quoted(entry)} in '
                return dataclasses.replace(problem, entry=inside)
        return None
    if hint is type(None):
        return None if value is None else _Problem('None', fits=False)
    return None


def _joined(words: list[str]) -> str:
    *first, last = words
    return f'{", ".join(first)} and {last}' if first else last


def _named(option: Any) -> str:
    return 'None' if option is type(None) else ' or '.join(map(repr, typing.get_args(option)))


def _out_of_bounds(kind: Any, *rest: Any) -> _Problem | None:
    """The same of a value with a type and bounds: (type, *bounds, value, arguments)."""
    *parts, value, arguments = rest
    bounds = [part for part in parts if isinstance(part, Bound)]
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return _Problem('a whole number' if kind is int else 'a number', fits=False)
        if kind is int and not isinstance(value, numbers.Integral):
            return _Problem('a whole number')
    limits = [arguments.get(b.limit) if isinstance(b.limit, str) else b.limit for b in bounds]
    known = [(b, n) for b, n in zip(bounds, limits) if n is not None and n is not CONTEXT]
    for bound, limit in known:
        if not bound.fulfilled(value, limit):
            return _Problem(_joined([b.said(n) for b, n in known]), bound.remedy(value, limit))
    if kind is float and not IsFinite(LARGEST).fulfilled(value, LARGEST):
        return _Problem(IsFinite(LARGEST).said())
    return None


def check(name: str, hints: Mapping[str, Any], arguments: Arguments) -> None:
    """Checks arguments against annotations.

    Args:
      name: what is called, for the message.
      hints: the annotations, with their bounds.
      arguments: the values of all parameters; those that are `CONTEXT` are passed over.

    Raises:
      ValueError: a value is out of bounds; a SpecError if it is a wrong choice.

    Example:
      >>> check('fire', {'width': Size}, {'width': 0})
      Traceback (most recent call last):
      ValueError: fire width must be at least 1, got 0
    """
    for argument, hint in hints.items():
        value = arguments.get(argument, CONTEXT)
        problem = None if value is CONTEXT else _problem(hint, value, arguments)
        if problem is None:
            continue
        found = f'{problem.entry}{quoted(value)}'
        if problem.choice:
            raise SpecError(f'{name} {argument} is {found}; {problem.expected}{problem.remedy}')
        meaning = ''.join(f', {text},' for text in _meanings(hint))
        kind = SpecError if typing.get_origin(hint) is Literal else ValueError
        raise kind(
            f'{name} {argument}{meaning} must be {problem.expected}, got {found}{problem.remedy}'
        )


def _meanings(hint: Any) -> list[str]:
    inner = typing.get_args(hint) if typing.get_origin(hint) is not Literal else ()
    own = [hint.text] if isinstance(hint, Meaning) else []
    return own + [text for part in inner for text in _meanings(part)]


def bounded(hint: Any) -> bool:
    """Whether an annotation, or a part of it, says which values of its type are accepted."""
    if typing.get_origin(hint) is Literal:
        return True
    return isinstance(hint, Bound) or any(map(bounded, typing.get_args(hint)))


def hints_of(call: Callable) -> dict[str, Any]:
    """The annotations of the parameters of a function that are bounded."""
    try:
        hints = typing.get_type_hints(call, include_extras=True)
    except NameError:  # an annotation in quotes that names what is not there at run time
        hints = dict(getattr(call, '__annotations__', {}))
    return {name: hint for name, hint in hints.items() if name != 'return' and bounded(hint)}


def checked(call: Callable, name: Callable[[Any], str]) -> Callable:
    """A function, or an `__init__`, whose arguments are checked before it runs.

    Args:
      call: the function; it is returned itself if it is checked already.
      name: gives what the message names, from the first argument of a call.
    """
    if hasattr(call, 'bounded_hints'):
        return call
    signature = inspect.signature(call)
    hints = functools.cache(lambda: hints_of(call))

    @functools.wraps(call)
    def wrapped(*args, **kwargs):
        if hints():
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError:  # the call itself says what is missing
                return call(*args, **kwargs)
            given.apply_defaults()
            check(name(args[0] if args else None), hints(), given.arguments)
        return call(*args, **kwargs)

    wrapped.bounded_hints = hints  # pyright: ignore[reportAttributeAccessIssue]
    return wrapped


def described(hint: Any) -> str:
    """What an annotation accepts, in the words of the catalogue; '' if it says no more than a type.

    Example:
      >>> described(Size), described(Literal['a', 'b']), described(tuple[Positive, ...] | None)
      ('at least 1', "'a' or 'b'", 'each positive, or None')
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kept = [part.said() for part in inner[1:] if isinstance(part, Bound)]
        words = [*filter(None, [described(inner[0])]), *kept]
        return ', '.join([*_meanings(hint), _joined(words)])
    if origin is Literal:
        return ' or '.join(map(repr, inner))
    if origin in (typing.Union, types.UnionType):
        found = [text for option in inner if (text := described(option))]
        none = ['or None'] if type(None) in inner and found else []
        return ', '.join([*dict.fromkeys(found), *none])
    if origin is tuple and inner:
        return f'each {text}' if (text := described(inner[0])) else ''
    return ''
