"""Copying and reversing strings of symbols, once, twice or with another symbol."""

import string
from collections.abc import Callable, Sequence

from posenc_jax.lab.tasks.impact_pe.family import Example, Family, uniform

_GREEK = [chr(code) for first in ('α', 'Α') for code in range(ord(first), ord(first) + 25)]
# 100 symbols of one letter; Greek capitals have a gap where small letters have a final sigma.
SYMBOLS = (*string.ascii_letters, *(letter for letter in _GREEK if letter not in 'ς\u03a2'))


def _text(symbols):
    return ' '.join(symbols)


def _twice(first, second):
    return f'{_text(first)} [NEXT] {_text(second)}'


def _of_string(verb: str, answer: Callable[[Sequence[str]], str], repeat: bool = False) -> Family:
    """A task `VERB: S [SEP] `; with `repeat` all symbols of S are the same."""

    def example(symbols):
        return Example(f'{verb}: {_text(symbols)} [SEP] ', answer(symbols))

    def draw(rng, low, high, symbols):
        count = uniform(rng, low, high)
        drawn = rng.integers(0, len(symbols), 1 if repeat else count)
        return example([symbols[i] for i in drawn] * (count if repeat else 1))

    text = f'{verb} : [SEP] [NEXT]'
    return Family(text, draw, lambda n: [example(SYMBOLS[:1] * n)], SYMBOLS)


def _replaced(one, other, count):
    prompt = f'Replace {one} with {other} in {_text([one] * count)} [SEP] '
    return Example(prompt, _text([other] * count))


def _draw_replace(rng, low, high, symbols):
    count = uniform(rng, low, high)
    one, other = rng.choice(len(symbols), 2, replace=False)
    return _replaced(symbols[one], symbols[other], count)


COPYING = {
    'copy': _of_string('Copy', _text),
    'copy_repeat1': _of_string('Copy', _text, repeat=True),
    'copy_replace': Family(
        'Replace with in [SEP]', _draw_replace, lambda n: [_replaced('a', 'b', n)], SYMBOLS
    ),
    'copy_2x': _of_string('Copy', lambda s: _twice(s, s)),
    'copy_repeat1_2x': _of_string('Copy', lambda s: _text([*s, *s]), repeat=True),
    'reverse': _of_string('Reverse', lambda s: _text(s[::-1])),
    'reverse_2x': _of_string('Reverse', lambda s: _twice(s[::-1], s[::-1])),
    'reverse_then_copy': _of_string('Reverse', lambda s: _twice(s[::-1], s)),
}
