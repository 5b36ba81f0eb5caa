"""Sequence-to-sequence tasks that test how a decoder steps through its source: copies, repetitions,
and lookup tables.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from posenc_jax.lab.tasks.word_task import Words, WordTask
from posenc_jax.protocol.registry import register

Pair = tuple[Words, Words]

END = '<eos>'
DIGITS = tuple('0123456789')
STRINGS = tuple(f'{number:03b}' for number in range(8))
TABLES = tuple(f't{number}' for number in range(1, 9))
MOST = 5  # how often a digit is repeated at most
ALONE = 2  # the last two tables occur only alone, never in a composition
# Each table is one bijection of the strings, the same in every sample.
BIJECTIONS = {
    table: dict(zip(STRINGS, np.random.default_rng([9, number]).permutation(STRINGS).tolist()))
    for number, table in enumerate(TABLES)
}


def times(digit: str) -> int:
    """How often recopying repeats a digit: 0 to 3 once, 4 to 6 three times, 7 to 9 five times."""
    return 1 if digit <= '3' else 3 if digit <= '6' else 5


def repeated(x: Sequence[str], counts: Sequence[int]) -> Words:
    """Repeats each word as often as its count says."""
    return [word for word, count in zip(x, counts, strict=True) for _ in range(count)]


def _recopied(x):
    return repeated(x, [times(digit) for digit in x])


def deduped(x: Sequence[str], counts: Sequence[int]) -> Pair:
    """The source repeats each digit; the target has every run of equal digits collapsed to one."""
    runs = [digit for place, digit in enumerate(x) if place == 0 or x[place - 1] != digit]
    return [*repeated(x, counts), END], [*runs, END]


def retrieved(x: Sequence[str]) -> Pair:
    """The target lists every digit d of x with the digit at index d of x, 'n/a' beyond its end."""
    found = lambda digit: x[int(digit)] if int(digit) < len(x) else 'n/a'
    return list(x), [word for digit in x for word in (digit, ':', found(digit), ';')] + [END]


def looked_up(
    string: str, tables: Sequence[str], *, reverse: bool = False, bijections=BIJECTIONS
) -> Pair:
    """The source names a string and tables to apply to it in turn; the target lists all values, the
    string included. With `reverse` the source names the tables before the string, the last to apply
    in front. `bijections` has, for each table, the value of each string.
    """
    values = [string]
    for table in tables:
        values.append(bijections[table][values[-1]])
    source = [*reversed(tables), string] if reverse else [string, *tables]
    return [*source, '.'], [*values, END]


def _digits(rng, length):
    return rng.choice(DIGITS, length).tolist()


def _query(rng, length):
    tables = TABLES if length == 1 else TABLES[:-ALONE]
    return str(rng.choice(STRINGS)), rng.choice(tables, length).tolist()


@dataclasses.dataclass(frozen=True)
class Transduction:
    """A task that maps a source to a target.

    Attributes:
      draw: (generator, length) -> (source, target).
      words: all words of sources and targets, `END` included.
      widest: length -> the most words of a source and of a target, `END` of the target excluded.
      trained: shortest and longest length in training, in digits or in tables.
      tested: the longer lengths of the test.
    """

    draw: Callable[[np.random.Generator, int], Pair]
    words: tuple[str, ...] = (END, *DIGITS)
    widest: Callable[[int], tuple[int, int]] = lambda n: (n, n)
    trained: tuple[int, int] = (5, 10)
    tested: tuple[int, ...] = (15, 20, 25, 30, 50, 100)

    def __call__(self, rng: np.random.Generator, length: int) -> Pair:
        """Draws a source of `length` digits, before they are repeated, or tables, and its target.

        Raises:
          ValueError: a length below 1.
        """
        if length < 1:
            raise ValueError(f'a source has a length of at least 1, got {length}')
        return self.draw(rng, length)


def _of_digits(pair, source=1, target=1, words=(END, *DIGITS)):
    """`source` and `target` are the most words for one digit."""
    widest = lambda n: (source * n, target * n)
    return Transduction(lambda rng, length: pair(_digits(rng, length)), words, widest)


def _of_tables(reverse):
    draw = lambda rng, length: looked_up(*_query(rng, length), reverse=reverse)
    widest = lambda n: (n + 2, n + 1)
    return Transduction(draw, (END, '.', *STRINGS, *TABLES), widest, (1, 4), (5, 6, 7, 8, 9))


# Ray Chowdhury, Caragea, arXiv 2305.20019; lookup tables after Liska et al., arXiv 1802.06467.
TRANSDUCTIONS = {
    'copy': _of_digits(lambda x: (x, [*x, END])),
    'reverse_copy': _of_digits(lambda x: (x, [*x[::-1], END])),
    'lookup': _of_tables(False),
    'reverse_lookup': _of_tables(True),
    'recopy': _of_digits(lambda x: (x, [*_recopied(x), END]), target=MOST),
    'reverse_recopy': _of_digits(lambda x: (x, [*_recopied(x[::-1]), END]), target=MOST),
    'inv_recopy': _of_digits(lambda x: (_recopied(x), [*x, END]), source=MOST),
    'inv_reverse_recopy': _of_digits(lambda x: (_recopied(x[::-1]), [*x, END]), source=MOST),
    'dedupe': Transduction(
        lambda rng, length: deduped(_digits(rng, length), rng.choice([1, 3, 5], length).tolist()),
        widest=lambda n: (MOST * n + 1, n),
    ),
    'pos_retrieve': _of_digits(retrieved, target=4, words=(END, *DIGITS, ':', ';', 'n/a')),
}


@register('source_target', kind='task')
@dataclasses.dataclass(frozen=True)
class SourceTarget(WordTask):
    """One of ten maps from a source to a target; the task length is the number of digits before
    they are repeated, or of tables. Loss on the target and the end.

    | name | source | target |
    | --- | --- | --- |
    | `copy`, `reverse_copy` | digits | the digits, in the same or the reverse order |
    | `recopy`, `reverse_recopy` | digits | as above, 4 to 6 three times and 7 to 9 five times |
    | `inv_recopy`, `inv_reverse_recopy` | the target of the line above | its source |
    | `dedupe` | digits, each once, three or five times, and `<eos>` | one digit of each run |
    | `pos_retrieve` | digits d | `d : x[d] ;` for each of them |
    | `lookup`, `reverse_lookup` | a string and tables | the string, and the value of each table |

    The paper trains on 5 to 10 digits and tests on up to 100; tables on 1 to 4 and 5 to 9.

    Differs from the paper: `$` is written for the `<eos>` that ends a target, samples may repeat,
    and no composition of tables is held out. The paper's model is a recurrent encoder-decoder,
    which `evidence/experiments/monotonic_location.py` trains.

    Args:
      name: the map.
      layout: 'row' (`source ^ target $`, for a decoder) or 'source' (an encoder reads the source).

    Reference: Ray Chowdhury, Caragea, "Monotonic Location Attention for Length Generalization",
    arXiv 2305.20019; official code JRC1995/MonotonicLocationAttention.

    Example:
      >>> task = SourceTarget('recopy')
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=3)['tokens'][0, :12])
      '8 6 5 ^ 8 8 8 8 8 6 6 6'
    """

    name: Literal[*TRANSDUCTIONS]
    layout: Literal['row', 'source'] = 'row'

    counted = 'number of digits or tables'

    @property
    def words(self) -> tuple[str, ...]:
        return TRANSDUCTIONS[self.name].words

    def widest(self, length: int) -> tuple[int, int]:
        return TRANSDUCTIONS[self.name].widest(length)

    def pair(self, rng, low, high):
        drawn = TRANSDUCTIONS[self.name]
        source, target = drawn(rng, int(rng.integers(low, high, endpoint=True)))
        return source, target[:-1]  # `END` is the end of the task
