"""Checks of arguments that several modules have in common."""

import math
import numbers
from typing import Any


def is_size(value: Any) -> bool:
    """Whether a value is an integer of at least 1; True and False are none."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and int(value) >= 1


def check_factor(name: str, factor: float) -> float:
    """`factor` if it is a finite number of at least 1.

    Raises:
      ValueError: it is not.
    """
    if not (math.isfinite(factor) and factor >= 1):
        raise ValueError(
            f'{name}: factor is new length / trained length and must be at least 1, got {factor}'
        )
    return factor


def check_train_len(name: str, train_len: int) -> int:
    """`train_len` if it is a positive integer.

    Raises:
      ValueError: it is not, or it was not given.
    """
    if not isinstance(train_len, numbers.Integral) or train_len < 1:
        raise ValueError(
            f'{name} needs train_len, the trained length in tokens, a positive integer; got '
            f'{train_len!r}'
        )
    return train_len
