"""Tasks of arithmetic modulo 5: a sum of products, an expression in brackets, an equation."""

import operator

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.chomsky15.problem import MODULUS, Problem

PLAIN = '01234+-*_'  # the released code has an id for blanks, which it does not use here
BRACKETS = '01234+-*()x'  # nor is x used in expressions
EQUATION = '01234+-()x='
DIGITS = EQUATION[:MODULUS]
OPERATIONS = {'+': operator.add, '-': operator.sub, '*': operator.mul}
PLUS, MINUS, TIMES = (PLAIN.index(sign) for sign in OPERATIONS)


def modular_arithmetic(tape: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B 1']:
    """The value modulo 5 of digits at the even places with + (5), - (6) and * (7) between them;
    products come first.
    """
    total, product = np.zeros(len(tape), np.int64), tape[:, 0]
    for sign, digit in zip(tape[:, 1::2].T, tape[:, 2::2].T):
        times = sign == TIMES
        total = np.where(times, total, total + product)
        product = np.where(times, product * digit, np.where(sign == MINUS, -digit, digit)) % MODULUS
    return (total + product)[:, None] % MODULUS


def draw_plain(rng: np.random.Generator, batch: int, n: int) -> Int[np.ndarray, 'B _']:
    """Digits and signs in turn, n of them, or n - 1 if n is even."""
    tape = rng.integers(0, MODULUS, (batch, odd(n)))
    tape[:, 1::2] = rng.integers(PLUS, TIMES, (batch, odd(n) // 2), endpoint=True)
    return tape


def odd(n: int) -> int:
    """n, or n - 1 if n is even."""
    return n - (n + 1) % 2


def value_of(text: str, x: int = 0) -> int:
    """The value modulo 5 of an expression of the grammar E = d | -d | (E) | (E+E) | (E-E) | (E*E).

    Args:
      text: the expression, without spaces.
      x: the value of the letter x, which may stand for a digit.
    """
    values, pending = [], []  # what is read and not yet used: numbers, and signs and brackets
    previous = '('
    for symbol in text:
        if symbol in OPERATIONS:
            # A minus at the beginning or behind another sign belongs to its digit.
            pending.append('negative' if previous in '(+-*' else symbol)
        elif symbol == '(':
            pending.append(symbol)
        elif symbol == ')':
            if (sign := pending.pop()) != '(':
                right = values.pop()
                values[-1] = OPERATIONS[sign](values[-1], right) % MODULUS
                pending.pop()
        else:
            value = x if symbol == 'x' else int(symbol)
            if pending and pending[-1] == 'negative':
                pending.pop()
                value = -value
            values.append(value % MODULUS)
        previous = symbol
    return values[0]


def solution_of(equation: str) -> int:
    """The value of x that solves an equation without products.

    x occurs once, so the left side is a + c x with c = 1 or c = -1.
    """
    left, _, right = equation.partition('=')
    at_0, at_1 = value_of(left, x=0), value_of(left, x=1)
    return (int(right) - at_0) * (at_1 - at_0) % MODULUS


def written(ids: Int[np.ndarray, ' N'], symbols: str) -> str:
    """Input ids as text."""
    return ''.join(symbols[i] for i in ids)


def modular_arithmetic_brackets(tape: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B 1']:
    """The value modulo 5 of an expression in brackets."""
    return np.array([[value_of(written(row, BRACKETS))] for row in tape])


def solve_equation(tape: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B 1']:
    """The value of x; 0 for tapes of fewer than three symbols, which have no equation."""
    if tape.shape[1] < 3:
        return np.zeros((len(tape), 1), np.int64)
    return np.array([[solution_of(written(row, EQUATION))] for row in tape])


def expression(rng: np.random.Generator, n: int, signs: str) -> str:
    """A random expression of exactly n symbols.

    Up to four symbols it is `d`, `-d`, `(d)` or `(-d)`. Beyond, it is `(L sign R)`, with the length
    of L uniform in 1 .. n-4.
    """
    if n <= 4:
        digit = DIGITS[rng.integers(MODULUS)]
        return (digit, f'-{digit}', f'({digit})', f'(-{digit})')[n - 1]
    left = int(rng.integers(1, n - 3))
    parts = [expression(rng, size, signs) for size in (left, n - 3 - left)]
    return f'({parts[0]}{signs[rng.integers(len(signs))]}{parts[1]})'


def equation(rng: np.random.Generator, n: int) -> str:
    """A random equation of n >= 3 symbols: an expression of n - 2 symbols with x in place of a
    digit, `=`, and its value. The digit is the first one from a random place on, cyclically.
    """
    left = expression(rng, n - 2, '+-')
    first = int(rng.integers(n - 2))
    place = next(at % (n - 2) for at in range(first, first + n) if left[at % (n - 2)] in DIGITS)
    return f'{left[:place]}x{left[place + 1 :]}={value_of(left)}'


def _ids(texts, symbols, n):
    return np.array([[symbols.index(s) for s in text] for text in texts]).reshape(len(texts), n)


def draw_brackets(rng: np.random.Generator, batch: int, n: int) -> Int[np.ndarray, 'B N']:
    """Random expressions with +, - and *."""
    return _ids([expression(rng, n, '+-*') for _ in range(batch)], BRACKETS, n)


def draw_equations(rng: np.random.Generator, batch: int, n: int) -> Int[np.ndarray, 'B N']:
    """Random equations; zeros if n is below 3, as in the released code."""
    if n < 3:
        return np.zeros((batch, n), np.int64)
    return _ids([equation(rng, n) for _ in range(batch)], EQUATION, n)


ARITHMETIC = {
    'modular_arithmetic': Problem(PLAIN, MODULUS, draw_plain, modular_arithmetic, input_length=odd),
    'modular_arithmetic_brackets': Problem(
        BRACKETS, MODULUS, draw_brackets, modular_arithmetic_brackets
    ),
    'solve_equation': Problem(EQUATION, MODULUS, draw_equations, solve_equation),
}
