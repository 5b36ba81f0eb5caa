"""Tasks on strings: counting, reversing, repeating and sorting, and the task of a stack of bits:
push and pop, and then write the stack.
"""

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.chomsky15.problem import MODULUS, Problem, Rows, ended, uniform

MISSING, FILLER = 2, 3
POP, PUSH, TERMINATOR = 2, 3, 2


def duplicate_string(bits: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B _']:
    """The string twice."""
    return np.concatenate([bits, bits], axis=1)


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


def stack_manipulation(tape: Int[np.ndarray, 'B N']) -> Int[np.ndarray, 'B _']:
    """The stack from top to bottom, the terminator 2 and zeros, n + 1 symbols together.

    Bits at the beginning of the tape are the stack from bottom to top; the action 2 pops, 3 pushes
    0 and 4 pushes 1. To pop an empty stack changes nothing.
    """
    stack, height = np.zeros_like(tape), np.zeros(len(tape), np.int64)
    for symbol in tape.T:
        pushed = np.flatnonzero(symbol != POP)
        stack[pushed, height[pushed]] = symbol[pushed] % PUSH
        height = np.where(symbol == POP, np.maximum(height - 1, 0), height + 1)
    answers = [row[:count][::-1].tolist() for row, count in zip(stack, height)]
    return ended(answers, TERMINATOR, tape.shape[1] + 1)


def draw_stack(rng: np.random.Generator, batch: int, n: int) -> Int[np.ndarray, 'B N']:
    """k bits and then n - k actions, with k uniform in 1 .. n-1; one bit if n is 1."""
    bits, actions = rng.integers(0, 2, (batch, n)), rng.integers(2, 5, (batch, n))
    count = rng.integers(1, max(n, 2), (batch, 1))
    return np.where(np.arange(n) < count, bits, actions)


def _sum(symbols: Rows, modulus: int) -> Rows:
    return symbols.sum(axis=1, keepdims=True) % modulus


_same = lambda n: n
STRINGS = {
    # Whether the number of unequal neighbours is odd is whether both ends differ.
    'even_pairs': Problem('01', 2, uniform(2), lambda x: x[:, :1] ^ x[:, -1:]),
    'parity_check': Problem('01', 2, uniform(2), lambda x: _sum(x, 2)),
    # Steps 0 (left), 1 (stay) and 2 (right), from place 0.
    'cycle_navigation': Problem('<.>', MODULUS, uniform(3), lambda x: _sum(x - 1, MODULUS)),
    'reverse_string': Problem('01', 2, uniform(2), lambda x: x[:, ::-1], output_length=_same),
    'duplicate_string': Problem(
        '01', 2, uniform(2), duplicate_string, output_length=lambda n: 2 * n
    ),
    'missing_duplicate_string': Problem('01?.', 2, draw_missing, missing_duplicate_string),
    # Indices count from 0, the order of the released code; its text counts from 1.
    'odds_first': Problem(
        '01',
        2,
        uniform(2),
        lambda x: np.concatenate([x[:, 1::2], x[:, ::2]], axis=1),
        output_length=_same,
    ),
    'bucket_sort': Problem(
        '01234', 5, uniform(5), lambda x: np.sort(x, axis=1), output_length=_same
    ),
    'stack_manipulation': Problem(
        '01-oi',
        3,
        draw_stack,
        stack_manipulation,
        output_length=lambda n: n + 1,
        terminator=TERMINATOR,
    ),
}
