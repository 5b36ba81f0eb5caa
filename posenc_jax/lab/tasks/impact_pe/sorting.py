"""Sorting a list of ranked symbols, or of numbers written digit by digit."""

import string
from collections.abc import Callable

from posenc_jax.lab.tasks.impact_pe.family import Example, Family, Step, spaced, uniform

RANKED = tuple(string.ascii_uppercase + string.ascii_lowercase)[:50]
_NUMBERS = (10, 9999)


def sort_example(items: list[int], written: Callable[[int], str]) -> Example:
    """The sorted list of ranks or numbers, of which `written` gives the text; the scratchpad is
    that of selection sort. Every step swaps the front of the unsorted portion with the first of its
    least items, and writes what then follows the front.
    """
    listed = lambda some: f'[ {", ".join(map(written, some))} ]'
    steps, rest = [], list(items)
    while rest:
        front, least = rest[0], min(rest)
        rest[rest.index(least)] = front
        rest = rest[1:]
        task = 'The minimum of the unsorted portion'
        steps.append(Step(written(front), task, written(least), listed(rest)))
    prompt = f'Sort the following list {listed(items)}. '
    return Example(prompt, f'The sorted list is {listed(sorted(items))}.', tuple(steps))


def _draw_symbols(rng, low, high, symbols):
    ranks = rng.integers(0, len(symbols), uniform(rng, low, high))
    return sort_example(ranks.tolist(), symbols.__getitem__)


def _draw_numbers(rng, low, high, symbols):
    count = uniform(rng, low, high)
    return sort_example(rng.integers(*_NUMBERS, count, endpoint=True).tolist(), spaced)


_TEXT = 'Sort the following list [ , ] . The sorted is minimum of unsorted portion'
SORTING = {
    'sort_single': Family(
        _TEXT,
        _draw_symbols,
        lambda n: [sort_example([0] * n, RANKED.__getitem__)],
        RANKED,
        parts='icor',
    ),
    'sort_multi': Family(
        f'{_TEXT} {" ".join("0123456789")}',
        _draw_numbers,
        lambda n: [sort_example([_NUMBERS[1]] * n, spaced)],
        parts='icor',
    ),
}
