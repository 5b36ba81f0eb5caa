"""The class of tasks of `impact_pe`: how their examples are drawn, and which words they have."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from posenc_jax.lab.tasks.word_task import Words

# Marks in brackets, `**`, a sign that belongs to its 1 (LEGO), words, and every other mark.
_WORD = re.compile(r"\[(?:SEP|NEXT)\]|\*\*|[+-]1\b|\w+(?:'s)?|[^\w\s]")


def words_of(text: str) -> Words:
    """The words of a text; every mark is one, and spaces are none."""
    return _WORD.findall(text)


def spaced(number: int) -> str:
    """The digits of a number and its sign, with spaces between them."""
    return ' '.join(str(number))


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a scratchpad.

    Attributes:
      input: what the step reads.
      computation: what it computes.
      output: its result.
      remaining: what is left for later steps.
      variables: what it keeps for later steps, or None if the task has no such part.
    """

    input: str
    computation: str
    output: str
    remaining: str
    variables: str | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt, its answer, and the steps to it if the task has a scratchpad."""

    prompt: str
    answer: str
    steps: tuple[Step, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
    """One of the tasks.

    Attributes:
      text: a text with all words of prompts, answers and steps, apart from the symbols.
      draw: (generator, shortest and longest length, symbols) -> an example.
      longest: length -> examples such that no example of this length has a longer prompt, answer,
        or part of a step than the longest of theirs.
      symbols: the alphabet, of which an option may use the first few; () if there is none.
      shortest: the least length.
      most: the largest length, or None.
      parts: which parts of a step exist, in the order of the scratchpad; '' if there is none.
    """

    text: str
    draw: Callable[[np.random.Generator, int, int, tuple[str, ...]], Example]
    longest: Callable[[int], list[Example]]
    symbols: tuple[str, ...] = ()
    shortest: int = 1
    most: int | None = None
    parts: str = ''


def uniform(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(rng.integers(low, high, endpoint=True))
