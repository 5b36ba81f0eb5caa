"""The texts of `ruler_lite`: what is hidden, in which filler, and what is asked.

Everything random in a text comes from one seed and from the places of the hidden lines, so that the
same question can be asked with more or less filler.
"""

import dataclasses
import math
import string
import uuid
from collections.abc import Callable, Sequence

import numpy as np

NOISE = 'The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.'
_ADJECTIVES = (
    'amber brave brisk calm clever cosy crisp dapper dim eager early faint fierce gentle glad big '
    'happy hasty hollow humble icy jolly keen kind large late lively lucky mellow merry mild misty '
    'narrow neat noble odd pale plain proud quick quiet rapid rare rough round shy silent slow'
).split()
_NOUNS = (
    'apple arrow badge basket beacon bell boat bottle bridge brook button candle castle chain ash '
    'coat coin cradle dish door drum engine falcon feather fence field flute forest garden gate '
    'glove hammer harbor hill island kettle ladder lamp lantern ledger marble meadow mirror needle '
    'orchard paddle pebble pillow'
).split()
COMMON, OFTEN, RARELY = 10, 30, 3  # words that are common, and how often words occur
HOPS = 4  # of a chain of variables


@dataclasses.dataclass(frozen=True)
class Text:
    """A prompt, its answer, and the references that a decoded answer must contain."""

    prompt: str
    answer: str
    references: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Form:
    """One of the tests.

    Attributes:
      write: (seed, units of filler, places of hidden lines) -> the text.
      lines: how many lines are hidden, 0 if the filler is what is asked about.
      fewest: the least units of filler.
      in_order: whether the lines keep their order.
    """

    write: Callable[[int, int, Sequence[int]], Text]
    lines: int
    fewest: int = 0
    in_order: bool = False


def words(rng: np.random.Generator, count: int) -> list[str]:
    """Different words, such as `brave-lamp`; where all pairs are used, numbers are appended."""
    pairs = len(_ADJECTIVES) * len(_NOUNS)
    order, found = rng.permutation(pairs), []
    for number in range(count):
        again, place = divmod(number, pairs)
        first, second = divmod(int(order[place]), len(_NOUNS))
        found.append(f'{_ADJECTIVES[first]}-{_NOUNS[second]}{again + 1 if again else ""}')
    return found


def hidden(lines: Sequence[str], filler: Sequence[str], places: Sequence[int]) -> list[str]:
    """The filler with lines in it, line i behind `places[i]` units of filler."""
    out = list(filler)
    # From behind, so that no insertion moves a place that is still needed; at one place the lines
    # keep their order.
    for number in reversed(in_text(places)):
        out.insert(places[number], lines[number])
    return out


def in_text(places: Sequence[int]) -> list[int]:
    """The numbers of hidden lines in the order of the text."""
    return sorted(range(len(places)), key=lambda number: (places[number], number))


def _value(rng, kind):
    if kind == 'numbers':
        return str(rng.integers(10**6, 10**7))
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))


def needles(keys: int, values: int, asked: int, kind: str, haystack: str) -> Form:
    """Needles in a haystack: each of some keys has several needles, and some of the keys are asked
    for.

    Args:
      kind: 'numbers' of seven digits, or 'uuids'.
      haystack: 'noise' (one sentence again and again) or 'needles' (of other keys).
    """

    def write(seed, units, places):
        rng, more = np.random.default_rng(seed), np.random.default_rng([seed, 1])
        names = words(rng, keys)
        secrets = [(name, _value(rng, kind)) for name in names for _ in range(values)]
        line = lambda name, value: f'One of the special magic {kind} for {name} is: {value}.'
        filler = [NOISE] * units
        if haystack == 'needles':
            others = [word for word in words(more, keys + units) if word not in names]
            filler = [line(word, _value(more, kind)) for word in others[:units]]
        text = '\n'.join(hidden([line(*secret) for secret in secrets], filler, places))
        queries = names[:asked]
        listed = queries[0] if asked == 1 else f'{", ".join(queries[:-1])}, and {queries[-1]}'
        order = in_text(places) if values > 1 else range(len(secrets))
        found = tuple(secrets[number][1] for number in order if secrets[number][0] in queries)
        prompt = (
            f'Some special magic {kind} are hidden within the following text. Remember them: they '
            f'will be asked for.\n{text}\nWhat are all the special magic {kind} for {listed} '
            f'mentioned in the provided text? The special magic {kind} for {listed} mentioned in '
            'the provided text are'
        )
        return Text(prompt, f' {", ".join(found)}', found)

    return Form(write, keys * values)


def _variables(seed, units, places):
    rng = np.random.default_rng(seed)
    names: list[str] = []
    while len(names) <= HOPS:
        name = ''.join(rng.choice(list(string.ascii_uppercase), 5))
        names += [name] * (name not in names)
    value = rng.integers(10_000, 100_000)
    chain = [f'VAR {names[0]} = {value}']
    chain += [f'VAR {name} = VAR {before}' for before, name in zip(names, names[1:])]
    text = '\n'.join(hidden(chain, [NOISE] * units, places))
    prompt = (
        f'Follow the assignments of variables that are hidden in the following text.\n{text}\n'
        f'Find all variables that are assigned the value {value}. There are {len(names)} of them:'
    )
    return Text(prompt, f' {", ".join(names)}', tuple(names))


def _common_words(seed, units, places):
    rng = np.random.default_rng(seed)
    known = words(rng, COMMON + units)
    often, rarely = known[:COMMON], known[COMMON:]
    entries = [word for word in often for _ in range(OFTEN)]
    entries += [word for word in rarely for _ in range(RARELY)]
    order = np.random.default_rng([seed, 1]).permutation(len(entries))
    shown = [entries[i] for i in order]
    found = tuple(dict.fromkeys(word for word in shown if word in often))
    text = ' '.join(f'{number}. {word}' for number, word in enumerate(shown, 1))
    prompt = (
        'Below is a numbered list of words, some of which appear more often than others.\n'
        f'{text}\nWhat are the {COMMON} most common words in the above list? They are'
    )
    return Text(prompt, f' {", ".join(found)}', found)


def _frequent_words(seed, units, places):
    rng = np.random.default_rng(seed)
    counts = zeta_counts(units)
    known = ['...']
    while len(known) < len(counts):
        word = ''.join(rng.choice(list(string.ascii_lowercase), 6))
        known += [word] * (word not in known)
    entries = [word for word, count in zip(known, counts) for _ in range(count)]
    shown = np.random.default_rng([seed, 1]).permutation(entries)
    found = tuple(known[1:4])
    prompt = (
        f'Track the frequency of each coded word in the following text.\n{" ".join(shown)}\n'
        'What are the three most frequent words in the above coded text, the dots left out? They '
        'are'
    )
    return Text(prompt, f' {", ".join(found)}', found)


def zeta_counts(n: int) -> list[int]:
    """How often the word of rank k = 1, 2, ... occurs, floor(n k^-2 / zeta(2)), while it does."""
    share = 6 / math.pi**2
    return [count for k in range(1, n) if (count := math.floor(n * share / k**2))]


FREQUENT = 80  # units from which on the words of ranks 4 and 5 differ in their counts
OTHERS = {
    'variable_tracking': Form(_variables, HOPS + 1, in_order=True),
    'common_words': Form(_common_words, 0),
    'freq_words': Form(_frequent_words, 0, fewest=FREQUENT),
}
