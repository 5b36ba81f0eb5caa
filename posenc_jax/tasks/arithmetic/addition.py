"""Addition of two numbers, digit by digit: `$303+7737=0408$`."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.core.registry import SpecError, check_choice, register
from posenc_jax.tasks.coupling import coupled_addition_ids, plain_ids
from posenc_jax.tasks.task import Batch, Length, Task, join_ragged, length_range, next_token_batch, one_token

SYMBOLS = '0123456789+=$_'
PLUS, EQUALS, BOUNDARY, PADDING = 10, 11, 12, 13


@register('addition', kind='task')
@dataclasses.dataclass(frozen=True)
class Addition(Task):
    """`$a+b=c$`; the task length is the number of digits of an operand. Loss on the sum and the closing `$`.

    A range of lengths draws the digits of the two operands independently and uniformly; an int gives both operands
    exactly that many. k-digit numbers are uniform in [10^(k-1), 10^k), and 0..9 for k = 1.

    Follows Cho et al., "Position Coupling: Improving Length Generalization of Arithmetic Transformers Using Task
    Structure", arXiv 2405.20671 (official code HanseulJo/position-coupling), where both formats below are on.

    Args:
      reverse_output: write the sum least significant digit first.
      zero_pad: pad both operands to m digits, the longer one's, and the sum to m + 1.
      ids: position ids that the task supplies: 'none', 'plain' (1, 2, ...) or 'coupled', all with start 1; a random
        start is the encoding's business.
      equal_length: both operands have the same number of digits.

    Raises:
      SpecError: unknown `ids`, or coupled ids for a sum that is neither reversed nor padded: the significance of its
        first digit, hence its id, is not known before the sum is.

    Example:
      task = Addition(reverse_output=True, zero_pad=True, ids='coupled')
      batch = task.sample(np.random.default_rng(0), batch=4, length=(1, 10))
      print(task.decode(batch['tokens'][0]), batch['positions'][0])
    """

    reverse_output: bool = False
    zero_pad: bool = False
    ids: Literal['none', 'plain', 'coupled'] = 'none'
    equal_length: bool = False

    def __post_init__(self):
        check_choice('ids', self.ids, ('none', 'plain', 'coupled'))
        if self.ids == 'coupled' and not (self.reverse_output or self.zero_pad):
            raise SpecError(
                "addition(ids='coupled') needs reverse_output=True or zero_pad=True: otherwise the id of the first "
                'digit of the sum depends on how many digits the sum has'
            )

    @property
    def vocab_size(self) -> int:
        return len(SYMBOLS)

    def width(self, length: Length) -> int:
        return 3 * length_range(length, 1, 'number of digits')[1] + 4

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        low, high = length_range(length, 1, 'number of digits')
        a_count = rng.integers(low, high, batch, endpoint=True)
        b_count = a_count if self.equal_length else rng.integers(low, high, batch, endpoint=True)
        a, b = _numbers(rng, a_count, high), _numbers(rng, b_count, high)
        c = add_digits(a, b)
        if self.zero_pad:
            a_count = b_count = np.maximum(a_count, b_count)
            c_count = a_count + 1
        else:
            c_count = np.where(c.any(axis=1), high + 1 - np.argmax(c[:, ::-1] != 0, axis=1), 1)
        answer = c if self.reverse_output else _written(c, c_count)
        plus, equals, dollar = (one_token(token, batch) for token in (PLUS, EQUALS, BOUNDARY))
        operands = [dollar, (_written(a, a_count), a_count), plus, (_written(b, b_count), b_count), equals]
        pieces = [*operands, (answer, c_count), dollar]
        sequence, ends = join_ragged(pieces, self.width(length) + 1, PADDING)
        positions = None
        if self.ids == 'plain':
            positions = plain_ids(ends, width=sequence.shape[1])
        elif self.ids == 'coupled':
            positions = coupled_addition_ids(
                a_count, b_count, c_count, reverse_output=self.reverse_output, width=sequence.shape[1]
            )
        return next_token_batch(sequence, ends, a_count + b_count + 3, positions)

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        return ''.join(SYMBOLS[i] for i in ids)


def add_digits(a: Int[np.ndarray, 'B L'], b: Int[np.ndarray, 'B L']) -> Int[np.ndarray, 'B L+1']:
    """Column addition; digits least significant first, zeros beyond a number's end.

    Example:
      add_digits(np.array([[9, 9]]), np.array([[1, 0]]))
      # array([[0, 0, 1]])
    """
    out = np.zeros((a.shape[0], a.shape[1] + 1), a.dtype)
    carry = np.zeros(a.shape[0], a.dtype)
    for column in range(a.shape[1]):
        carry, out[:, column] = np.divmod(a[:, column] + b[:, column] + carry, 10)
    out[:, -1] = carry
    return out


def _numbers(rng, count, high):
    """Digits, least significant first, of numbers with `count` digits; a leading 0 only where it is the only digit."""
    digits = rng.integers(0, 10, (len(count), high))
    lead = rng.integers(1, 10, len(count))
    row = np.arange(len(count))
    digits[row, count - 1] = np.where(count > 1, lead, digits[row, 0])
    return np.where(np.arange(high) < count[:, None], digits, 0)


def _written(digits, count):
    """The first `count` digits in writing order, most significant first (what follows is not used)."""
    return np.take_along_axis(digits, (count[:, None] - 1 - np.arange(digits.shape[1])) % digits.shape[1], axis=1)
