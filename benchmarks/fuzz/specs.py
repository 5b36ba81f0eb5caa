"""Spec strings: the examples of all Cards, with letters, names and numbers changed."""

import pathlib
import random
import re

import posenc_jax as pj
from benchmarks.fuzz.target import Target

NUMBERS = ('0', '-1', '1', '2', '0.5', '1e9', '2147483647', '2147483648', '1000000000000', '-1e300', '1e309', '1e-300', '0x10', '""', 'None', 'True',
           '()', '(1,)', '[]', '"x"', 'rope()')  # fmt: skip
SIZES = dict(heads=2, kv_heads=2, head_dim=8, model_dim=16, train_len=16)


def changed(rng: random.Random, text: str) -> str:
    """A text with a few random edits: letters dropped, doubled and swapped, numbers replaced, parts repeated."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at, other = rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)
        match rng.randrange(7):
            case 0:
                text = text[:at] + text[at + 1 :]
            case 1:
                text = text[:at] + rng.choice('()[]{},|="\'\\.*-+ \n\0é😀0123456789abcdefxyz_') + text[at:]
            case 2 | 3 | 4:
                text = replaced(rng, text)
            case 5:
                text = text[: min(at, other)] + text[max(at, other) :]
            case 6:
                text = text[:at] + text[min(at, other) : max(at, other)] + text[at:]
    return text


def replaced(rng: random.Random, text: str) -> str:
    """A text in which one value of an argument is another."""
    values = list(re.finditer(r'(?<=[=(,])\s*[\w.]+(?=[,)])', text))
    if not values:
        return text + ' | ' + text
    value = rng.choice(values)
    return text[: value.start()] + rng.choice(NUMBERS) + text[value.end() :]


def make(rng: random.Random, good: pathlib.Path, own: pathlib.Path) -> str:
    examples = [card.example for card in pj.catalog('encoding')]
    text = ' | '.join(rng.sample(examples, rng.choice((1, 1, 1, 2, 3))))
    return changed(rng, text)


def read(spec: str) -> None:
    pj.make(spec, **SIZES)


TARGET = Target(make=make, read=read)
