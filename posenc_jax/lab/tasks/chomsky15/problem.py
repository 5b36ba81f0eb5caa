"""The class of tasks of `chomsky15`: how inputs are drawn, and which output belongs to an input."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Int

Rows = np.ndarray  # integers [B, length]
MODULUS = 5


@dataclasses.dataclass(frozen=True)
class Problem:
    """A map from strings of n symbols to strings.

    Attributes:
      symbols: the character of each input id.
      outputs: number of output ids.
      draw: (generator, number of rows B, n) -> inputs [B, input_length(n)].
      solve: inputs [B, input_length(n)] -> outputs [B, output_length(n)].
      input_length: number of input symbols for a length n.
      output_length: number of output symbols for a length n.
      terminator: the output id that ends an answer, where something may follow it; None if answers
        fill the output.
    """

    symbols: str
    outputs: int
    draw: Callable[[np.random.Generator, int, int], Rows]
    solve: Callable[[Rows], Rows]
    input_length: Callable[[int], int] = lambda n: n
    output_length: Callable[[int], int] = lambda n: 1
    terminator: int | None = None


def uniform(ids: int) -> Callable[[np.random.Generator, int, int], Rows]:
    """A draw of n symbols, each uniform over the first `ids` ids."""
    return lambda rng, batch, n: rng.integers(0, ids, (batch, n))


def ended(answers: list[list[int]], terminator: int, width: int) -> Int[np.ndarray, 'B width']:
    """Answers in rows, each followed by the terminator and then by zeros."""
    out = np.zeros((len(answers), width), np.int64)
    for row, answer in zip(out, answers):
        row[: len(answer) + 1] = [*answer, terminator]
    return out
