"""Errors of wrong input: what was found, what was expected, and the nearest valid choice."""

import contextlib
import difflib
import functools
import inspect
import numbers
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec('P')
R = TypeVar('R')
LARGEST = (2 - 2.0**-23) * 2.0**127  # the largest number of float32
_LONGEST_NAME = 100
_MOST_SHOWN = 60  # choices in an error message


class SpecError(ValueError):
    """A spec string, or an argument in it, is wrong. The message says what was expected and the
    nearest valid choice.
    """


def nearest(name: str, choices, page: str = 'docs/catalog.md') -> str:
    """The ending of an error message: the nearest valid choices, or all of them when none is
    near. Capitals count for nothing, and neither do the characters between words: the choice that
    differs in these alone is the only one named. `page` lists all choices, where they are many.

    Example:
      >>> nearest('RoPE', ['rope', 'p_rope', 'alibi']), nearest('T5-RPE', ['rpe', 't5_rpe'])
      ("did you mean 'rope'?", "did you mean 't5_rpe'?")
    """
    choices = sorted(set(choices))
    if close := near(name, choices):
        return 'did you mean ' + ' or '.join(repr(c) for c in close) + '?'
    shown = choices[:_MOST_SHOWN]
    more = len(choices) - len(shown)
    text = 'valid: ' + (', '.join(repr(c) for c in shown) or 'none')
    return text + (f' and {more} more ({page})' if more else '')


def near(name: str, choices: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """At most three choices that are like a name, the nearest first, as `nearest` names them.

    Example:
      >>> near('hed_dim', ['head_dim', 'heads', 'width'])
      ['head_dim', 'heads']
    """
    # The name is cut because the time of the search grows with the square of its length.
    name, choices = name[:_LONGEST_NAME], sorted(set(choices))
    if same := same_letters(name, choices):
        return same
    spelled = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), spelled, n=3, cutoff=cutoff)
    return [spelled[choice] for choice in found]


def same_letters(name: str, choices) -> list[str]:
    """The choices that differ from a name in capitals and in what stands between words alone."""
    letters = lambda text: re.sub(r'[\W_]', '', text.lower())
    return [choice for choice in choices if letters(choice) == letters(name) != '']


def shortened(text: str, longest: int = 48) -> str:
    """A text of at most `longest` characters; a longer one loses its middle.

    Example:
      >>> shortened('rope(freqs=longrope(long=(1.0, 1.5, 2.0)))', longest=20)
      'rope(freqs=lon…2.0)))'
    """
    if len(text) <= longest:
        return text
    end = longest // 3
    return f'{text[: longest - end]}…{text[-end:]}'


def quoted(value: Any, longest: int = 80) -> str:
    r"""A value as error messages show it: on one line, and shortened.

    Example:
      >>> quoted('two\nlines'), quoted(10**5000)
      ("'two\\nlines'", 'a whole number of 16610 bits')
    """
    # Python refuses to write numbers of thousands of digits.
    if isinstance(value, int) and value.bit_length() > 14_000:
        return f'a whole number of {value.bit_length()} bits'
    try:
        return shortened(repr(value).replace('\n', ' '), longest)
    except ValueError:
        return f'a {type(value).__name__} that holds a number of thousands of digits'
    except RecursionError:
        return f'a {type(value).__name__} that is nested too deep'


def check_choice(what: str, value: str, choices: Mapping | tuple[str, ...]) -> str:
    """`value` if it is one of `choices`.

    Raises:
      SpecError: it is not; names the nearest choice.
    """
    if value not in choices:
        raise SpecError(f'{what} is {quoted(value)}; {nearest(str(value), choices)}')
    return value


def check_number(
    what: str,
    value: float,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float = LARGEST,
) -> float:
    """`value` if it is finite in float32, greater than `above`, at least `least`, and at most
    `most`.

    Raises:
      ValueError: it is not, or it is text or a boolean; the message starts with `what`.

    Example:
      >>> check_number('fire threshold', 512.0, above=0)
      512.0
    """
    if isinstance(value, bool | str):
        raise ValueError(f'{what} must be a number, got {value!r}')
    if above is not None and not value > above:
        raise ValueError(
            f'{what} must be {"positive" if above == 0 else f"above {above}"}, got {value}'
        )
    if least is not None and not value >= least:
        raise ValueError(f'{what} must be at least {least}, got {value}')
    if not abs(value) <= LARGEST:
        raise ValueError(
            f'{what} must be a finite number of 32 bits, at most {LARGEST:.4g}, got {value}'
        )
    if value > most:
        raise ValueError(f'{what} must be at most {most}, got {value}')
    return value


def check_flag(what: str, value: bool) -> bool:
    """`value` if it is True or False.

    Raises:
      ValueError: it is not.
    """
    if not isinstance(value, bool):
        raise ValueError(f'{what} must be True or False, got {quoted(value)}')
    return value


def names_checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function that refuses an unknown keyword with the nearest one, which Python does not name.

    Example:
      >>> names_checked(lambda heads, width: None)(hed=3)
      Traceback (most recent call last):
      TypeError: <lambda>() has no argument 'hed'; did you mean 'heads'?
    """
    known = [name for name in inspect.signature(function).parameters if name not in ('self', 'cls')]

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                called = function.__qualname__.removesuffix('.__init__')
                raise TypeError(f'{called}() has no argument {name!r}; {nearest(name, known)}')
        return function(*args, **kwargs)

    return wrapped


def must_define(base: Any, method: str) -> NotImplementedError:
    """The error of a base class whose subclass lacks a method.

    Example:
      >>> must_define('a text', 'upper(self)')
      NotImplementedError('str must define upper(self)')
    """
    return NotImplementedError(f'{type(base).__name__} must define {method}')


def is_size(value: Any) -> bool:
    """Whether a value is an integer of at least 1; True and False are none."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and int(value) >= 1


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """Errors of values that arise within begin with what they are about, such as a field's name.

    Example:
      >>> with about('cross'):
      ...     raise ValueError('expected a spec string')
      Traceback (most recent call last):
      ValueError: cross: expected a spec string
    """
    try:
        yield
    except SpecError as error:
        raise SpecError(f'{what}: {error}') from error
    except ValueError as error:
        raise ValueError(f'{what}: {error}') from error
