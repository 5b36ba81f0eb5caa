"""Tasks on strings: counting, reversing, repeating and sorting."""

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.chomsky15.problem import MODULUS, Problem, uniform

MISSING, FILLER = 2, 3


def even_pairs(bits: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B 1']:
    """The number of unequal neighbours modulo 2, which is whether the first bit and the last one
    differ.
    """
    return bits[:, :1] ^ bits[:, -1:]


def parity_check(bits: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B 1']:
    """The number of ones modulo 2."""
    return bits.sum(axis=1, keepdims=True) % 2


def cycle_navigation(steps: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B 1']:
    """The last place of a walk on a circle of five places, from place 0 by steps 0 (left), 1 (stay)
    and 2 (right).
    """
    return (steps - 1).sum(axis=1, keepdims=True) % MODULUS


def reverse_string(bits: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B N']:
    """The string from its end."""
    return bits[:, ::-1]


def duplicate_string(bits: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B _']:
    """The string twice."""
    return np.concatenate([bits, bits], axis=1)


def odds_first(bits: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B N']:
    """The symbols at the odd indices, counted from 0, and then those at the even ones. This is the
    order of the released code; its text counts from 1.
    """
    return np.concatenate([bits[:, 1::2], bits[:, ::2]], axis=1)


def missing_duplicate_string(tape: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B 1']:
    """The bit whose place in a string written twice has the id 2. An odd length has a filler at the
    end; a tape of one symbol is the bit 1 itself, as in the released code.
    """
    half = tape.shape[1] // 2
    if not half:
        return tape
    place = np.argmax(tape == MISSING, axis=1, keepdims=True)
    return np.take_along_axis(tape, (place + half) % (2 * half), axis=1)


def draw_missing(rng: np.random.Generator, batch: int, n: int) -> Int[np.ndarray, 'B N']:
    """Strings of n // 2 bits written twice, with one bit missing."""
    if n == 1:
        return np.ones((batch, 1), np.int64)
    tape = duplicate_string(rng.integers(0, 2, (batch, n // 2)))
    np.put_along_axis(tape, rng.integers(0, tape.shape[1], (batch, 1)), MISSING, axis=1)
    return np.concatenate([tape, np.full((batch, n % 2), FILLER)], axis=1)


def bucket_sort(symbols: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B N']:
    """The symbols in ascending order."""
    return np.sort(symbols, axis=1)


_same = lambda n: n
STRINGS = {
    'even_pairs': Problem('01', 2, uniform(2), even_pairs),
    'parity_check': Problem('01', 2, uniform(2), parity_check),
    'cycle_navigation': Problem('<.>', MODULUS, uniform(3), cycle_navigation),
    'reverse_string': Problem('01', 2, uniform(2), reverse_string, output_length=_same),
    'duplicate_string': Problem(
        '01', 2, uniform(2), duplicate_string, output_length=lambda n: 2 * n
    ),
    'missing_duplicate_string': Problem('01?.', 2, draw_missing, missing_duplicate_string),
    'odds_first': Problem('01', 2, uniform(2), odds_first, output_length=_same),
    'bucket_sort': Problem('01234', 5, uniform(5), bucket_sort, output_length=_same),
}
