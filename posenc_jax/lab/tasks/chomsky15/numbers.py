"""Tasks on binary numbers of any length: sum, product and square root."""

import math

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.chomsky15.problem import Problem, ended

OPERATOR, TERMINATOR = 2, 2


def number_of(bits: Int[np.ndarray, ' N']) -> int:
    """The number that is written in these bits, the lowest first."""
    return int(''.join(map(str, bits[::-1])), 2)


def bits_of(number: int, least: int = 0) -> list[int]:
    """The bits of a number, the lowest first, with zeros behind them up to `least` bits."""
    return [int(bit) for bit in f'{number:b}'.zfill(least)[::-1]]


def _operands(row):
    at = int(np.flatnonzero(row == OPERATOR)[0])
    return number_of(row[:at]), number_of(row[at + 1 :])


def binary_addition(tape: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B _']:
    """a + b with the lowest bit first, the terminator 2 and zeros, n + 1 symbols together, from a
    tape `a 2 b`. A tape of one or two symbols is a number, and the answer is this number.
    """
    n = tape.shape[1]
    totals = [number_of(row) if n <= 2 else sum(_operands(row)) for row in tape]
    return ended([bits_of(total) for total in totals], TERMINATOR, n + 1)


def binary_multiplication(tape: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B N']:
    """a * b with the lowest bit first, the terminator 2 and zeros, n symbols together, from a tape
    `a 2 b`. A tape of n <= 2 symbols has n - 1 zeros as its answer.
    """
    n = tape.shape[1]
    if n <= 2:
        return ended([[0] * (n - 1)] * len(tape), TERMINATOR, n)
    return ended([bits_of(math.prod(_operands(row))) for row in tape], TERMINATOR, n)


def compute_sqrt(bits: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B _']:
    """The integer part of the square root in ceil(n / 2) bits. Both numbers have the highest bit
    first.
    """
    width = (bits.shape[1] + 1) // 2
    roots = [bits_of(math.isqrt(number_of(row[::-1])), width)[::-1] for row in bits]
    return np.array(roots, np.int64).reshape(len(bits), width)


def positive_bits(rng: np.random.Generator, batch: int, n: int) -> Int[np.ndarray, 'B N']:
    """n bits of numbers that are uniform in 1 .. 2**n - 1."""
    bits = rng.integers(0, 2, (batch, n))
    while (zero := ~bits.any(axis=1)).any():
        bits[zero] = rng.integers(0, 2, (int(zero.sum()), n))
    return bits


def draw_operands(rng: np.random.Generator, batch: int, n: int) -> Int[np.ndarray, 'B N']:
    """`a 2 b` with the length of a uniform in 1 .. n-2, and numbers of l bits uniform in
    1 .. 2**l - 1. Numbers of n <= 2 bits, from 0 to 2**n - 2, stand alone, as in the released code.
    """
    if n <= 2:
        numbers = rng.integers(0, 2**n - 1, batch)
        return np.array([bits_of(int(number), n) for number in numbers]).reshape(batch, n)
    tape = np.empty((batch, n), np.int64)
    for row, count in zip(tape, rng.integers(1, n - 1, batch).tolist()):
        row[:count] = positive_bits(rng, 1, count)
        row[count] = OPERATOR
        row[count + 1 :] = positive_bits(rng, 1, n - 1 - count)
    return tape


NUMBERS = {
    'binary_addition': Problem(
        '01+',
        3,
        draw_operands,
        binary_addition,
        output_length=lambda n: n + 1,
        terminator=TERMINATOR,
    ),
    'binary_multiplication': Problem(
        '01*',
        3,
        draw_operands,
        binary_multiplication,
        output_length=lambda n: n,
        terminator=TERMINATOR,
    ),
    'compute_sqrt': Problem(
        '01', 2, positive_bits, compute_sqrt, output_length=lambda n: (n + 1) // 2
    ),
}
