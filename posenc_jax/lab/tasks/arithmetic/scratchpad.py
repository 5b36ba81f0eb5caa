"""A scratchpad for addition that writes the remaining digits of both numbers again in every step.

The idea is that of Shen et al., "Positional Description Matters for Transformers Arithmetic", arXiv
2311.14737. Their strings are not public; the strings here are our choice.
"""

import numpy as np
from jaxtyping import Int


def scratchpad_width(digits: int) -> int:
    """Number of tokens of the scratchpad for two numbers of `digits` digits each."""
    return sum(2 * (digits - step) + step + 5 for step in range(1, digits + 1))


def recursive_scratchpad(
    a: Int[np.ndarray, 'B L'],
    a_count: Int[np.ndarray, ' B'],
    b: Int[np.ndarray, 'B L'],
    b_count: Int[np.ndarray, ' B'],
    plus: int,
    comma: int,
    semicolon: int,
) -> list[tuple[Int[np.ndarray, 'B _'], Int[np.ndarray, ' B']]]:
    """Writes a step `a'+b',c,r;` for each digit of the longer number, as one piece for
    `join_ragged`.

    a' and b' are the remaining digits of both numbers, c is the carry, and r holds the digits of
    the sum so far. a', b' and r are written most significant digit first. The last carry has no
    step of its own; if it is 1, it is the first digit of the sum that follows.

    Args:
      a, b: digits, least significant first and zero beyond a number's end.
      a_count, b_count: number of digits of each number.
      plus, comma, semicolon: token ids.
    """
    rows = []
    for row in range(len(a)):
        carry, so_far, tokens = 0, [], []
        for digit in range(max(a_count[row], b_count[row])):
            carry, new = divmod(int(a[row, digit] + b[row, digit]) + carry, 10)
            so_far.insert(0, new)
            rest = [
                number[row, digit + 1 : count[row]][::-1].tolist()
                for number, count in ((a, a_count), (b, b_count))
            ]
            tokens += [*rest[0], plus, *rest[1], comma, carry, comma, *so_far, semicolon]
        rows.append(tokens)
    count = np.array([len(tokens) for tokens in rows])
    values = np.zeros((len(rows), count.max()), np.int64)
    for row, tokens in enumerate(rows):
        values[row, : len(tokens)] = tokens
    return [(values, count)]
