"""Multiplication of two numbers, digit by digit: `$15*36=0450$`."""

import dataclasses
from functools import partial

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.arithmetic.digits import random_numbers, written
from posenc_jax.lab.tasks.coupling import IDS, Ids, coupled_multiplication_ids, supplied_ids
from posenc_jax.lab.tasks.task import (
    Batch,
    Length,
    Task,
    join_ragged,
    length_range,
    next_token_batch,
    one_token,
)
from posenc_jax.protocol.errors import SpecError, check_choice
from posenc_jax.protocol.registry import register

SYMBOLS = '0123456789*=$_'
TIMES, EQUALS, BOUNDARY, PADDING = 10, 11, 12, 13


@register('multiplication', kind='task')
@dataclasses.dataclass(frozen=True)
class Multiplication(Task):
    """`$a*b=c$`; the task length is the number of digits of an operand. Loss on the product and the
    closing `$`.

    With a range of lengths, the two operands draw their numbers of digits independently and
    uniformly. The N x 2 task of Cho et al., "Position Coupling", arXiv 2405.20671, is
    `multiplication(second=2, pad_product=True, reverse_output=True, ids='coupled')`. The task of
    Shen et al., "Positional Description Matters for Transformers Arithmetic", arXiv 2311.14737, is
    `multiplication(digits=n, pad_product=True, reverse_output=True)`; they write `#` for `=`.

    Args:
      reverse_output: write the product least significant digit first.
      pad_product: zero-pad the product to the total number of digits of both operands as written.
      digits: zero-pad both operands to this many digits; 0 for no padding.
      second: number of digits of the second operand; 0 draws it like that of the first.
      ids: position ids that the task supplies: 'none', 'plain' (`$` 0, then 1, 2, ...) or
        'coupled', all with start 1.

    Raises:
      SpecError: unknown `ids`; negative `digits` or `second`, or `second` above `digits`; coupled
        ids for a product that is not padded and reversed.
      ValueError: at sampling, numbers longer than `digits`.

    Example:
      >>> task = Multiplication(second=2, pad_product=True, reverse_output=True, ids='coupled')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=2)
      >>> task.decode(batch['tokens'][0]), batch['positions'][0].tolist()
      ('$58*12=6960', [0, 3, 4, 5, 3, 4, 5, 4, 3, 2, 1])
    """

    reverse_output: bool = False
    pad_product: bool = False
    digits: int = 0
    second: int = 0
    ids: Ids = 'none'

    def __post_init__(self):
        check_choice('ids', self.ids, IDS)
        for name in ('digits', 'second'):
            if getattr(self, name) < 0:
                raise SpecError(
                    f'multiplication {name} must be at least 1, or 0 for none, got '
                    f'{getattr(self, name)}'
                )
        if self.digits and self.second > self.digits:
            raise SpecError(
                f'multiplication: a second number of {self.second} digits cannot be padded to '
                f'digits={self.digits}'
            )
        if self.ids == 'coupled' and not (self.reverse_output and self.pad_product):
            raise SpecError(
                "multiplication(ids='coupled') needs reverse_output=True and pad_product=True"
            )

    @property
    def vocab_size(self) -> int:
        return len(SYMBOLS)

    def _range(self, length):
        low, high = length_range(length, 1, 'number of digits')
        if self.digits and high > self.digits:
            raise ValueError(
                f'numbers of {high} digits cannot be padded to digits={self.digits}; use at most '
                f'{self.digits}'
            )
        return low, high

    def width(self, length: Length) -> int:
        high = self._range(length)[1]
        return 2 * (self.digits * 2 or high + (self.second or high)) + 3

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        low, high = self._range(length)
        a_count = rng.integers(low, high, batch, endpoint=True)
        b_count = (
            rng.integers(low, high, batch, endpoint=True)
            if self.second == 0
            else np.full(batch, self.second)
        )
        wide = max(high, self.second, self.digits)
        a, b = random_numbers(rng, a_count, wide), random_numbers(rng, b_count, wide)
        if self.digits:
            a_count = b_count = np.full(batch, self.digits)
        c = multiply_digits(a, b)
        c_count = a_count + b_count
        if not self.pad_product:
            c_count = np.where(c.any(axis=1), c.shape[1] - np.argmax(c[:, ::-1] != 0, axis=1), 1)
        answer = c if self.reverse_output else written(c, c_count)
        times, equals, dollar = (one_token(token, batch) for token in (TIMES, EQUALS, BOUNDARY))
        operands = [
            dollar,
            (written(a, a_count), a_count),
            times,
            (written(b, b_count), b_count),
            equals,
        ]
        sequence, ends = join_ragged(
            [*operands, (answer, c_count), dollar], self.width(length) + 1, PADDING
        )
        positions = supplied_ids(
            self.ids, ends, sequence.shape[1], partial(coupled_multiplication_ids, a_count, b_count)
        )
        return next_token_batch(sequence, ends, a_count + b_count + 3, positions)

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        return ''.join(SYMBOLS[i] for i in ids)


def multiply_digits(
    a: Int[np.ndarray, 'B L'], b: Int[np.ndarray, 'B M']
) -> Int[np.ndarray, 'B L+M']:
    """Long multiplication; digits least significant first, zeros beyond a number's end.

    Example:
      >>> multiply_digits(np.array([[5, 1]]), np.array([[6, 3]])).tolist()
      [[0, 4, 5, 0]]
    """
    out = np.zeros((len(a), a.shape[1] + b.shape[1]), np.int64)
    for column in range(b.shape[1]):
        out[:, column : column + a.shape[1]] += a * b[:, column : column + 1]
    carry = np.zeros(len(a), np.int64)
    for column in range(out.shape[1]):
        carry, out[:, column] = np.divmod(out[:, column] + carry, 10)
    return out
