"""Tests of bounds in annotations: what they accept, what the error says, where they are checked."""

import dataclasses
from typing import Annotated, Literal

import pytest

from posenc_jax.protocol.bounds import (
    CONTEXT,
    Count,
    Divides,
    Entries,
    Factor,
    Finite,
    Ge,
    Le,
    Lt,
    Multiple,
    Positive,
    Share,
    Size,
    TrainLen,
    check,
    checked,
    described,
)
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import SpecError

# A value, its annotation, and what the error says; None where the value is right.
CASES = [
    (1, Size, None),
    (0, Size, 'must be at least 1, got 0'),
    (True, Size, 'must be a whole number, got True'),
    (2.5, Size, 'must be a whole number, got 2.5'),
    (0, Count, None),
    (2, Positive, None),
    (0.0, Positive, 'must be positive, got 0.0'),
    (float('nan'), Positive, 'must be positive, got nan'),
    (float('inf'), Positive, 'must be a finite number of 32 bits, at most 3.403e+38, got inf'),
    ('x', Positive, "must be a number, got 'x'"),
    (float('nan'), Finite, 'must be a finite number of 32 bits, at most 3.403e+38, got nan'),
    (-1e30, Finite, None),
    (1.5, Share, 'must be at least 0 and at most 1, got 1.5'),
    (1, Annotated[float, Lt(1)], 'must be below 1, got 1'),
    (0, Factor, ', new length / trained length, must be at least 1, got 0'),
    (None, TrainLen, ', the trained length in tokens, must be a whole number, got None'),
    (CONTEXT, TrainLen, None),
    (3, Annotated[int, Multiple(2)], 'must be even, got 3; the nearest is 4'),
    (7, Annotated[int, Multiple(4)], 'must be a multiple of 4, got 7; the nearest is 8'),
    (9, Annotated[int, Ge(1), Le('other')], 'must be at least 1 and at most other=8, got 9'),
    (3, Annotated[int, Divides('other')], 'must be a divisor of other=8, got 3; the nearest is 2'),
    ((1,), Annotated[tuple[int, ...], Entries('other')], 'must be a tuple of other=8 entries'),
    (9, Annotated[int, Le('unknown')], None),
    (None, Size | None, None),
    (0, Size | None, 'must be at least 1, got 0; None is accepted too'),
    ((1.0, 2.0), tuple[Positive, ...], None),
    (
        (1.0, -2.0),
        Positive | tuple[Positive, ...] | None,
        'must be positive, got -2.0 in (1.0, -2.0); None is acc',
    ),
    ((1.0,), tuple[Positive, Positive], 'must be a tuple of 2 entries'),
    (3, tuple[Positive, ...], 'must be a tuple, got 3'),
    (12, Literal[8, 16], 'must be 8 or 16, got 12'),
    ('half', Literal['half', 'whole'], None),
    ('hafl', Literal['half', 'whole'], "is 'hafl'; did you mean 'half'?"),
    (('a', 'c'), tuple[Literal['a', 'b'], ...], "is 'c' in ('a', 'c'); valid: 'a', 'b'"),
]


@pytest.mark.parametrize('value, hint, message', CASES)
def test_values_are_checked(value, hint, message):
    values = {'x': value, 'other': 8}
    if message is None:
        return check('it', {'x': hint}, values)
    with pytest.raises(ValueError) as error:
        check('it', {'x': hint}, values)
    assert str(error.value).startswith('it x') and message in str(error.value)
    chosen = 'did you mean' in message or 'valid' in message or hint == Literal[8, 16]
    assert chosen == isinstance(error.value, SpecError)


def test_functions_and_dataclasses_are_checked_before_they_run():
    @dataclasses.dataclass(frozen=True)
    class Rule:
        size: Size = 3
        most: Annotated[int, Ge('size')] = 4

    Rule.__init__ = checked(Rule.__init__, lambda _: 'rule')
    assert Rule(size=4).size == 4
    with pytest.raises(ValueError, match='rule most must be at least size=5, got 4'):
        Rule(5)
    with pytest.raises(TypeError, match='no_such'):
        Rule(no_such=1)


def test_a_subclass_is_named_in_the_errors_of_its_base():
    class Base(Encoding):
        def __init__(self, size: Size = 1, heads: int = CONTEXT):
            self.size = size

    class Below(Base):
        def __init__(self, size: int = 1):
            super().__init__(size)

    assert Below(2).size == 2
    with pytest.raises(ValueError, match='Below size must be at least 1, got 0'):
        Below(0)


def test_bounds_are_described():
    words = described(Annotated[int, Ge(1), Divides('width')] | None)
    assert words == 'at least 1 and a divisor of width, or None'
    assert described(int) == described(Encoding | None) == ''
