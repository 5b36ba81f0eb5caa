"""What a file of this folder offers to be fuzzed: how an input is made, and how the package reads
it.
"""

import dataclasses
import pathlib
import random
import unicodedata
from collections.abc import Callable
from typing import Any

# What train.py, eval.py and the other programs turn into one line and exit status 2.
REFUSALS = (ValueError, OSError, ImportError)
LONGEST = 1000  # characters of a refusal
CANARY = 'canary.txt'  # a file beside the folder of a try, which no try may change


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
      prepare: folder -> None; writes what all tries start from, e.g. a good checkpoint. Called
        once, in a process of its own.
      make: (random, folder of `prepare`, empty folder of this try) -> an input. It depends on the
        random numbers alone. Beside the folder of the try lies the file `CANARY`, to which links
        may lead.
      read: input -> None; gives it to the package as a user would. It may return, or raise one of
        `REFUSALS`.
      show: input -> what a report prints of it.
    """

    make: Callable[[random.Random, pathlib.Path, pathlib.Path], Any]
    read: Callable[[Any], None]
    prepare: Callable[[pathlib.Path], None] = lambda folder: None
    show: Callable[[Any], str] = repr


def problem(error: BaseException) -> str | None:
    """What is wrong with an error as an answer to wrong input; None for one readable line.

    Example:
      >>> problem(ValueError('train.steps must be at least 1, got 0')), problem(KeyError('step'))
      (None, "KeyError: 'step'")
    """
    text = f'{type(error).__name__}: {error}'
    if not isinstance(error, REFUSALS):
        return text[:300]
    if not str(error).strip():
        return f'{type(error).__name__} without a message'
    if '\n' in str(error).strip():
        return f'a message of {len(str(error).splitlines())} lines: {text[:300]!r}'
    if controls(str(error).strip()):
        return f'control characters in the line: {text[:300]!r}'
    return f'a message of {len(text)} characters: {text[:300]!r}' if len(text) > LONGEST else None


def controls(text: str) -> str:
    """The characters of a line that a terminal obeys instead of showing them.

    Example:
      >>> controls('a line'), controls('a \x1b[31mred\rline')
      ('', '\x1b\r')
    """
    return ''.join(c for c in text if unicodedata.category(c) in ('Cc', 'Zl', 'Zp'))
