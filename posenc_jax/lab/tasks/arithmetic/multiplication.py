"""Multiplication of two numbers, digit by digit: `$15*36=0450$`."""

import dataclasses
from functools import partial
from typing import Annotated

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.arithmetic.digits import digits_of, random_numbers, written
from posenc_jax.lab.tasks.coupling import Ids, coupled_multiplication_ids
from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.lab.tasks.task import Length
from posenc_jax.protocol.bounds import Count, Le
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register


@register('multiplication', kind='task')
@dataclasses.dataclass(frozen=True)
class Multiplication(PromptTask):
    """`$a*b=c$`; the task length is the number of digits of an operand. Loss on the product and the
    closing `$`.

    With a range of lengths, the two operands draw their numbers of digits independently and
    uniformly. The N x 2 task of Cho et al., arXiv 2405.20671, is
    `multiplication(second=2, pad_product=True, reverse_output=True, ids='coupled')`. The task of
    Shen et al., "Positional Description Matters for Transformers Arithmetic", arXiv 2311.14737, is
    `multiplication(digits=n, pad_product=True, reverse_output=True)`; they write `#` for `=`.

    Args:
      reverse_output: write the product least significant digit first.
      pad_product: zero-pad the product to the total number of digits of both operands as written.
      digits: zero-pad both operands to this many digits; 0 for no padding.
      second: number of digits of the second operand; 0 draws it like that of the first.
      ids: position ids: 'none', 'plain' (see `PromptTask`) or 'coupled', with start 1.

    Raises:
      SpecError: `second` above `digits`; coupled ids for a product that is not padded and reversed.
      ValueError: at sampling, numbers longer than `digits`.

    Example:
      >>> task = Multiplication(second=2, pad_product=True, reverse_output=True, ids='coupled')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=2)
      >>> task.decode(batch['tokens'][0]), batch['positions'][0].tolist()
      ('$58*12=6960', [0, 3, 4, 5, 3, 4, 5, 4, 3, 2, 1])
    """

    reverse_output: bool = False
    pad_product: bool = False
    digits: Annotated[Count, Le(1000)] = 0
    second: Annotated[Count, Le(1000)] = 0
    ids: Ids = 'none'

    names = '0123456789*=$_'
    counted = 'number of digits'

    def __post_init__(self):
        if self.digits and self.second > self.digits:
            raise SpecError(
                f'multiplication: a second number of {self.second} digits cannot be padded to '
                f'digits={self.digits}'
            )
        if self.ids == 'coupled' and not (self.reverse_output and self.pad_product):
            raise SpecError(
                "multiplication(ids='coupled') needs reverse_output=True and pad_product=True"
            )

    def range(self, length: Length) -> tuple[int, int]:
        low, high = super().range(length)
        if self.digits and high > self.digits:
            raise ValueError(
                f'numbers of {high} digits cannot be padded to digits={self.digits}; use at most '
                f'{self.digits}'
            )
        return low, high

    def longest(self, length: int) -> int:
        return 2 * (self.digits * 2 or length + (self.second or length)) + 3

    def draw(self, rng, batch, low, high):
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
        c_count = a_count + b_count if self.pad_product else digits_of(c)
        answer = c if self.reverse_output else written(c, c_count)
        of_a, of_b = (written(a, a_count), a_count), (written(b, b_count), b_count)
        coupled = partial(coupled_multiplication_ids, a_count, b_count)
        return Drawn(['$', of_a, '*', of_b, '='], [(answer, c_count), '$'], coupled)


def multiply_digits(
    a: Int[np.ndarray, 'B L'], b: Int[np.ndarray, 'B M']
) -> Int[np.ndarray, 'B L+M']:
    """Long multiplication; digits least significant first, zeros beyond a number's end."""
    out = np.zeros((len(a), a.shape[1] + b.shape[1]), np.int64)
    for column in range(b.shape[1]):
        out[:, column : column + a.shape[1]] += a * b[:, column : column + 1]
    carry = np.zeros(len(a), np.int64)
    for column in range(out.shape[1]):
        carry, out[:, column] = np.divmod(out[:, column] + carry, 10)
    return out
