"""Arithmetic in words: addition, polynomials, sums, and the parity of bits."""

import itertools
import math

from posenc_jax.lab.tasks.impact_pe.family import Example, Family, Step, spaced, uniform

MODULUS = 10
_NUMBERS = ' '.join(map(str, range(20)))  # sums of two digits and a carry are one word


def addition_example(a: int, b: int) -> Example:
    """The sum of two numbers, added digit by digit from the last one.

    A step writes the remaining digits as numbers, so leading zeros of the shorter operand are one
    `0`. A last step adds the carry if there is one.
    """
    width = max(len(str(a)), len(str(b)))
    one, other = (str(number).zfill(width) for number in (a, b))
    steps, carry = [], 0
    for place in reversed(range(width)):
        x, y = int(one[place]), int(other[place])
        added = f'{x} + {y} + carry = {x + y} + {carry} = {x + y + carry}'
        carry, digit = divmod(x + y + carry, 10)
        rest = [spaced(int(text[:place])) if place else '' for text in (one, other)]
        steps.append(Step(f'{x}, {y}', added, str(digit), ' + '.join(rest), f'carry: {carry}'))
    if carry:
        steps.append(Step('0, 0', '0 + 0 + carry = 0 + 1 = 1', '1', ' + ', 'carry: 0'))
    prompt = f'Compute {spaced(a)} + {spaced(b)} ? '
    return Example(prompt, f'The answer is {spaced(a + b)}.', tuple(steps))


def _draw_addition(rng, low, high, symbols):
    """Numbers of i and j digits, uniform over the pairs with low <= max(i, j) <= high."""
    pair = uniform(rng, (low - 1) ** 2, high**2 - 1)  # there are m^2 pairs with max(i, j) <= m
    most = math.isqrt(pair) + 1
    place = pair - (most - 1) ** 2
    counts = (most, place + 1) if place < most else (place - most + 1, most)
    return addition_example(*(_number(rng, count) for count in counts))


def _number(rng, digits):
    first = rng.integers(0 if digits == 1 else 1, 10)
    return int(''.join(map(str, [first, *rng.integers(0, 10, digits - 1)])))


def poly_example(x: int, terms: list[tuple[int, int]]) -> Example:
    """The value modulo 10 at x of a polynomial of terms (coefficient, degree)."""
    written = [f'{spaced(coefficient)} * x ** {degree}' for coefficient, degree in terms]
    steps, total = [], 0
    for number, (coefficient, degree) in enumerate(terms):
        factor, value = spaced(coefficient), spaced(coefficient * x**degree)
        power = f'{factor} * {spaced(x)} ** {degree} = {factor} * {spaced(x**degree)}'
        before, total = total, (total + coefficient * x**degree) % MODULUS
        rest, kept = ' + '.join(written[number + 1 :]), f'sum: {before} + {value} = {total}'
        steps.append(Step(written[number], power, value, rest, kept))
    prompt = f'Evaluate at x = {spaced(x)} in {" + ".join(written)} ? '
    return Example(prompt, f'The answer is {total}.', tuple(steps))


def _draw_poly(rng, low, high, symbols):
    count, x = uniform(rng, low, high), uniform(rng, -2, 2)
    terms = zip(rng.integers(-3, 4, count).tolist(), rng.integers(0, 4, count).tolist())
    return poly_example(x, list(terms))


def sum_example(values: list[int]) -> Example:
    """The sum modulo 10 of numbers."""
    steps, total = [], 0
    for number, value in enumerate(values):
        reached = value + total
        computed = f'{spaced(value)} + sum = {spaced(value)} + {spaced(total)} ='
        total = reached % MODULUS
        rest = ' + '.join(map(spaced, values[number + 1 :]))
        kept = f'sum: {spaced(reached)} = {total}'
        steps.append(Step(spaced(value), computed, spaced(reached), rest, kept))
    prompt = f'Compute: {" + ".join(map(str, values))} .'
    return Example(prompt, f'The answer is {total} .', tuple(steps))


def parity_example(bits: list[int]) -> Example:
    """Whether the number of ones is even."""
    parities = [0, *itertools.accumulate(bits, lambda x, y: x ^ y)]
    steps = [
        Step(
            f'{bit}',
            f'{bit} ** par = {bit} ** {before}',
            f'{after}',
            f'[ {", ".join(map(str, bits[number + 1 :]))} ]',
            f'par: {after}',
        )
        for number, (bit, before, after) in enumerate(zip(bits, parities, parities[1:]))
    ]
    prompt = f"Is the number of 1's even in the sequence [ {', '.join(map(str, bits))} ] ? "
    return Example(prompt, f'The answer is {("Yes", "No")[parities[-1]]}.', tuple(steps))


def _values(example, least, most):
    def draw(rng, low, high, symbols):
        count = uniform(rng, low, high)
        return example(rng.integers(least, most, count, endpoint=True).tolist())

    return draw


def _longest_sums(n):
    # Between them, every running sum after the first number has two digits in one of both.
    return [sum_example([first, *[9] * (n - 1)]) for first in (9, 8)]


def _longest_terms(n):
    return [poly_example(-2, [(coefficient, 3)] * n) for coefficient in (3, -3)]


NUMBERS = {
    'addition': Family(
        f'Compute + ? The answer is . , carry = : {_NUMBERS}',
        _draw_addition,
        lambda n: [addition_example(10**n - 1, 10**n - 1)],
        parts='icovr',
    ),
    'poly': Family(
        f'Evaluate at x = in * ** + - ? The answer is . sum : {" ".join("0123456789")}',
        _draw_poly,
        _longest_terms,
        parts='icovr',
    ),
    'sum': Family(
        f'Compute : + . The answer is sum = {" ".join("0123456789")}',
        _values(sum_example, 1, 9),
        _longest_sums,
        parts='icovr',
    ),
    'parity': Family(
        "Is the number of 1's even in sequence [ , ] ? The answer is Yes No . ** par = : 0 1",
        _values(parity_example, 0, 1),
        lambda n: [parity_example([1] * n)],
        parts='icovr',
    ),
}
