"""Addition of two numbers, digit by digit: `$303+7737=0408$`, and of several numbers."""

import dataclasses
import functools
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.arithmetic.digits import digits_of, random_numbers, written
from posenc_jax.lab.tasks.arithmetic.index_hints import draw_hints, hinted
from posenc_jax.lab.tasks.arithmetic.scratchpad import recursive_scratchpad, scratchpad_width
from posenc_jax.lab.tasks.coupling import Ids, coupled_addition_ids, coupled_sum_ids
from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.protocol.bounds import Ge, Le
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

SYMBOLS = '0123456789+=$_'
FURTHER = ',;'  # only with a scratchpad; index hints use the same ids


@register('addition', kind='task')
@dataclasses.dataclass(frozen=True)
class Addition(PromptTask):
    """`$a+b=c$`; the task length is the number of digits of an operand. Loss on the sum and the
    closing `$`.

    With a range of lengths, the two operands draw their numbers of digits independently and
    uniformly; with an int, both have exactly that many digits. Numbers of k digits are uniform in
    [10^(k-1), 10^k), and those of one digit in 0..9.

    Follows Cho et al., "Position Coupling: Improving Length Generalization of Arithmetic
    Transformers Using Task Structure", arXiv 2405.20671 (official code
    HanseulJo/position-coupling), who use `reverse_output` and `zero_pad`.

    `reverse_operands`, `reverse_output` and `index_hints` are the formats of "Transformers Can
    Achieve Length Generalization But Not Robustly", arXiv 2402.09371. `scratchpad` follows
    "Positional Description Matters for Transformers Arithmetic", arXiv 2311.14737. That paper says
    only that every step writes the remaining digits again; the exact strings are our choice (see
    `recursive_scratchpad`). `random_spaces` puts spaces between the characters of this task.

    Args:
      reverse_output: write the sum least significant digit first.
      zero_pad: pad both operands to m digits, the length of the longer one, and the sum to m + 1.
      ids: position ids: 'none', 'plain' (see `PromptTask`) or 'coupled', with start 1.
      equal_length: give both operands the same number of digits.
      reverse_operands: write the operands least significant digit first.
      index_hints: number of different hints; 0 for none. A hint before every digit, also in the
        sum, names its significance: the digit of significance k (0 = least) has hint start + k,
        with a start drawn for each example.
      scratchpad: write the steps of the addition before the sum; they are scored too.
      first_hint: which digit has the lowest hint: the 'least' significant one, or the 'most'
        significant one that a sum of such operands may have, as in the released code of Cho et al.,
        which also writes one more zero before each operand. The digit of significance k then has
        hint start + m - k, m digits in the longer operand.

    Raises:
      SpecError: a single hint; first_hint='most' without hints;
        coupled ids with hints, with a scratchpad, or for a sum that is neither reversed nor padded,
        since the id of its first digit then depends on the length of the sum; a scratchpad with
        hints or reversed operands.
      ValueError: at sampling, sums with more digits than there are hints.

    Example:
      >>> task = Addition(reverse_output=True, zero_pad=True, ids='coupled')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=3)
      >>> task.decode(batch['tokens'][0]), batch['positions'][0].tolist()
      ('$368+103=1740', [0, 4, 3, 2, 1, 4, 3, 2, 1, 2, 3, 4, 5])
    """

    reverse_output: bool = False
    zero_pad: bool = False
    ids: Ids = 'none'
    equal_length: bool = False
    reverse_operands: bool = False
    index_hints: Annotated[int, Le(65_536)] = 0
    scratchpad: bool = False
    first_hint: Literal['least', 'most'] = 'least'

    counted = 'number of digits'

    def __post_init__(self):
        if self.first_hint != 'least' and not self.index_hints:
            raise SpecError(
                f'addition(first_hint={self.first_hint!r}) has no hints; give index_hints, such as '
                'index_hints=102'
            )
        if self.ids == 'coupled' and not (self.reverse_output or self.zero_pad):
            raise SpecError(
                "addition(ids='coupled') needs reverse_output=True or zero_pad=True: otherwise "
                'the id of the first digit of the sum depends on how many digits the sum has'
            )
        if self.index_hints < 0 or self.index_hints == 1:
            raise SpecError(
                'index_hints is a number of symbols, at least 2, or 0 for none, got '
                f'{self.index_hints}'
            )
        for name in ('index_hints', 'scratchpad'):
            if self.ids == 'coupled' and getattr(self, name):
                raise SpecError(
                    f"addition(ids='coupled') has no ids for {name}={getattr(self, name)}; leave "
                    'one out'
                )
        for name in ('reverse_operands', 'index_hints'):
            if self.scratchpad and getattr(self, name):
                raise SpecError(
                    'addition(scratchpad=True) cannot be combined with '
                    f'{name}={getattr(self, name)}; leave one out'
                )

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        hints = [f'h{number}' for number in range(self.index_hints)]
        return (*SYMBOLS, *(FURTHER if self.scratchpad else hints))

    @property
    def joint(self) -> str:
        return ' ' if self.index_hints else ''

    def longest(self, length: int) -> int:
        if self.index_hints and length + 1 > self.index_hints:
            raise ValueError(
                f'sums of {length}-digit numbers need {length + 1} index hints, but there are '
                f'{self.index_hints}; use at most {self.index_hints - 1} digits or more hints'
            )
        digits = (3 * length + 1) * (2 if self.index_hints else 1)
        return digits + 3 + (scratchpad_width(length) if self.scratchpad else 0)

    def draw(self, rng, batch, low, high):
        a_count = rng.integers(low, high, batch, endpoint=True)
        b_count = a_count if self.equal_length else rng.integers(low, high, batch, endpoint=True)
        a, b = random_numbers(rng, a_count, high), random_numbers(rng, b_count, high)
        c = add_digits(a, b)
        if self.zero_pad:
            a_count = b_count = np.maximum(a_count, b_count)
            c_count = a_count + 1
        else:
            c_count = digits_of(c)
        numbers = [
            (a, a_count, self.reverse_operands),
            (b, b_count, self.reverse_operands),
            (c, c_count, self.reverse_output),
        ]
        pieces = [
            (digits if reverse else written(digits, count), count)
            for digits, count, reverse in numbers
        ]
        if self.index_hints:
            pieces = self._hinted(rng, pieces, np.maximum(a_count, b_count))
        of_a, of_b, of_c = pieces
        steps = []
        if self.scratchpad:
            marks = map(self.names.index, f'+{FURTHER}')
            steps = recursive_scratchpad(a, a_count, b, b_count, *marks)
        order = dict(reverse_operands=self.reverse_operands, reverse_output=self.reverse_output)
        coupled = functools.partial(coupled_addition_ids, a_count, b_count, c_count, **order)
        return Drawn(['$', of_a, '+', of_b, '='], [*steps, of_c, '$'], coupled)

    def _hinted(self, rng, pieces, longer):
        """The numbers with their hints; `longer` counts the digits of the longer operand."""
        start = draw_hints(rng, longer + 1, self.index_hints) + len(SYMBOLS)
        step = 1
        if self.first_hint == 'most':
            start, step = start + longer, -1
        reverse = [self.reverse_operands, self.reverse_operands, self.reverse_output]
        return [hinted(*piece, start, order, step) for piece, order in zip(pieces, reverse)]


def add_digits(a: Int[np.ndarray, 'B L'], b: Int[np.ndarray, 'B L']) -> Int[np.ndarray, 'B L+1']:
    """Column addition; digits least significant first, zeros beyond a number's end."""
    out = np.zeros((a.shape[0], a.shape[1] + 1), a.dtype)
    carry = np.zeros(a.shape[0], a.dtype)
    for column in range(a.shape[1]):
        carry, out[:, column] = np.divmod(a[:, column] + b[:, column] + carry, 10)
    out[:, -1] = carry
    return out


@register('sums', kind='task')
@dataclasses.dataclass(frozen=True)
class Sums(PromptTask):
    """`$a+b+...+z=s$` with k numbers; the task length is the number of digits of a number. Loss on
    the sum and the closing `$`.

    The sum is written least significant digit first. All numbers and the sum are zero-padded to the
    same length: the most digits that a sum of k numbers, each as long as the longest one, can have.
    Follows Cho et al., arXiv 2405.20671.

    Args:
      operands: k, how many numbers are added.
      ids: position ids: 'none', 'plain' (see `PromptTask`) or 'coupled', with start 1.

    Example:
      >>> task = Sums(operands=3, ids='coupled')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=2)
      >>> task.decode(batch['tokens'][0]), batch['positions'][0].tolist()
      ('$038+013+091=241', [0, 4, 3, 2, 1, 4, 3, 2, 1, 4, 3, 2, 1, 2, 3, 4])
    """

    operands: Annotated[int, Ge(2), Le(1000)] = 3
    ids: Ids = 'none'

    names = SYMBOLS
    counted = 'number of digits'

    def sum_digits(self, digits: int) -> int:
        """The most digits that a sum of k numbers with `digits` digits each can have."""
        return len(str(self.operands * (10**digits - 1)))

    def longest(self, length: int) -> int:
        return (self.operands + 1) * (self.sum_digits(length) + 1)

    def draw(self, rng, batch, low, high):
        counts = rng.integers(low, high, (self.operands, batch), endpoint=True)
        wide = self.sum_digits(high)
        numbers = [random_numbers(rng, count, wide) for count in counts]
        total, carry = np.zeros((batch, wide), np.int64), np.zeros(batch, np.int64)
        for column in range(wide):
            carry, total[:, column] = np.divmod(
                sum(number[:, column] for number in numbers) + carry, 10
            )
        padded = np.array([self.sum_digits(n) for n in range(high + 1)])[counts.max(axis=0)]
        signs = ['$', *['+'] * (self.operands - 1)]
        pieces = [
            piece
            for sign, number in zip(signs, numbers)
            for piece in (sign, (written(number, padded), padded))
        ]
        coupled = functools.partial(coupled_sum_ids, padded, self.operands)
        return Drawn([*pieces, '='], [(total, padded), '$'], coupled)
