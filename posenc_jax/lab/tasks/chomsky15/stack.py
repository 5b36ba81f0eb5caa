"""The task of a stack of bits: push and pop, and then write the stack."""

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.chomsky15.problem import Problem, ended

POP, PUSH, TERMINATOR = 2, 3, 2


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


STACK = {
    'stack_manipulation': Problem(
        '01-oi',
        3,
        draw_stack,
        stack_manipulation,
        output_length=lambda n: n + 1,
        terminator=TERMINATOR,
    )
}
