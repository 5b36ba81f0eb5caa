"""A scratchpad for addition that writes what remains of both numbers again in every step.

Shen et al., "Positional Description Matters for Transformers Arithmetic", arXiv 2311.14737,
describe it so; their strings are not public, and the ones here are ours.
"""

import numpy as np
from jaxtyping import Int


def scratchpad_width(digits: int) -> int:
    """Tokens of the scratchpad of two numbers of `digits` digits.

    Example:
      >>> scratchpad_width(2)  # '2+3,1,7;' and '+,0,67;'
      15
    """
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
    """`a'+b',c,r;` for every digit that has been added: what remains of both numbers, the carry,
    the digits of the sum so far.

    Numbers and the sum so far are written most significant digit first. There are as many steps as
    the longer number has digits; the last carry is not written again, it leads the sum that
    follows.

    Args:
      a, a_count, b, b_count: digits, least significant first and zero beyond a number's end, and
        how many a number has.
      plus, comma, semicolon: token ids.

    Returns:
      One piece for `join_ragged`.

    Example:
      >>> a, b = np.array([[8, 2]]), np.array([[9, 3]])
      >>> ((values, count),) = recursive_scratchpad(a, np.array([2]), b, np.array([2]), 10, 14, 15)
      >>> ''.join('0123456789+=$_,;'[i] for i in values[0, : count[0]])
      '2+3,1,7;+,0,67;'
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
