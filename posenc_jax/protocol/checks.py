"""Checks of arguments that several modules have in common."""

import math
import numbers
from typing import Any

from jax import core, errors

from posenc_jax.protocol.errors import about as about
from posenc_jax.protocol.errors import is_size as is_size

_NAME = 'InconclusiveDimensionOperation'  # moved to jax.errors in jax 0.9
_INCONCLUSIVE: Any = getattr(errors if hasattr(errors, _NAME) else core, _NAME)


def exceeds(name: str, length: Any, most: int) -> bool:
    """Whether a length exceeds `most`. The length may be symbolic, as in `jax.export`, if its
    constraints tell.

    Raises:
      ValueError: a symbolic length that may be smaller or larger.

    Example:
      >>> from jax import export
      >>> exceeds('table', export.symbolic_shape('n', constraints=['n <= 7'])[0], 8)
      False
    """
    try:
        return bool(length > most)
    except _INCONCLUSIVE:
        raise ValueError(
            f'{name}: the symbolic length {length} may exceed {most}; bound it, as in '
            f"jax.export.symbolic_shape(..., constraints=['{length} <= {most}'])"
        ) from None


def layer_input(user: str, x: Any, rows: int, of: str = 'key', lookback: int = 0) -> Any:
    """`x`, the layer input as `project` gets it. Raises ValueError unless it has one row for each
    key, or each query, and `lookback` rows in front.
    """
    if x is None or x.shape[1] != rows + lookback:
        got = 'none' if x is None else f'{x.shape[1]} tokens'
        several = {'key': 'keys', 'query': 'queries'}[of]
        read = f'every {of} and of {lookback} tokens before' if lookback else f'one token per {of}'
        raise ValueError(f'{user} reads the layer input of {read}: {rows} {several}, input: {got}')
    return x


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
