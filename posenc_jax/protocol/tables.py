"""Tables with one vector per position: range checks and look-ups."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Num

from posenc_jax.protocol.checks import exceeds
from posenc_jax.protocol.tokens import Tokens

# Replaces an impossible position that is traced and so cannot raise an error. It is in no table, so
# a look-up gives NaN, and its distance to any position is far from all real distances.
NOWHERE = np.iinfo(np.int32).min


def known_range(
    values: Num[Array, '...'], valid: Bool[Array, '...'] | None
) -> tuple[int, int] | None:
    """The smallest and the largest value of real tokens, with 0 for padding; None if `values` or
    `valid` is traced.

    Example:
      >>> known_range(jnp.array([[7, -3, 5]]), jnp.array([[False, True, True]]))
      (-3, 5)
    """
    if isinstance(values, Tracer) or isinstance(valid, Tracer):
        return None
    real = np.asarray(values)
    if valid is not None:
        real = np.where(
            np.asarray(valid).reshape(*valid.shape, *[1] * (real.ndim - valid.ndim)), real, 0
        )
    return int(real.min()), int(real.max())


def check_integers(expected: str, pos: Num[Array, '#B L *P'], *components: tuple) -> None:
    """Raises ValueError, with what was expected, unless positions are integers [B, L, *P] with one
    of these P.

    Example:
      >>> check_integers('this needs integer positions [B, L]', jnp.array([[1.0]]), ())
      Traceback (most recent call last):
      ValueError: this needs integer positions [B, L], got float32 (1, 1)
    """
    if pos.shape[2:] not in components or not jnp.issubdtype(pos.dtype, jnp.integer):
        raise ValueError(f'{expected}, got {pos.dtype} {pos.shape}')


def check_row(user: str, tok: Tokens, remedy: str = '') -> Int[Array, '#B L']:
    """The positions of tokens, 0 for padding. Raises ValueError unless they are integers [B, L] of
    0 .. L - 1, as far as they are known; `remedy` ends the message.
    """
    check_integers(f'{user} needs integer positions [B, L]', tok.pos, ())
    low, high = known_range(tok.pos, tok.valid) or (0, 0)
    if low < 0 or high >= tok.length:
        wrong = low if low < 0 else high
        raise ValueError(
            f'{user}: position {wrong} is not in 0 .. {tok.length - 1}, those of a row of '
            f'{tok.length} tokens{remedy}'
        )
    return tok.pos if tok.valid is None else jnp.where(tok.valid, tok.pos, 0)


def check_range(name: str, tok: Tokens, count: int, remedy: str):
    """Raises unless the positions of real tokens lie in 0 .. count-1. If they are traced, the
    number of tokens is checked instead, which may be symbolic if its constraints tell.

    Args:
      name: whose table it is, for the message.
      tok: tokens with integer positions.
      count: how many positions the table has.
      remedy: what else the user may do, for the message.

    Raises:
      ValueError: fractional positions, or one outside, with its value and the range.

    Example:
      >>> check_range('table', Tokens.of(length=9), 8, 'shorter inputs')
      Traceback (most recent call last):
      ValueError: table: position 8 is not in 0 .. 7; use a larger table or shorter inputs
    """
    if not jnp.issubdtype(tok.pos.dtype, jnp.integer):
        raise ValueError(f'{name} needs integer positions, got {tok.pos.dtype}')
    known = known_range(tok.pos, tok.valid)
    if known is None:
        if exceeds(name, tok.length, count):
            raise ValueError(
                f'{name}: a row of {tok.length} tokens may have position {tok.length - 1}, which '
                f'is not in 0 .. {count - 1}; '
                f'use a larger table or {remedy}'
            )
        return
    low, high = known
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise ValueError(
            f'{name}: position {wrong} is not in 0 .. {count - 1}; use a larger table or {remedy}'
        )


def lookup_rows(table: Float[Array, 'M D'], rows: Num[Array, '...']) -> Float[Array, '... D']:
    """Rows of a table, interpolated linearly at fractional places; NaN outside the table.

    Example:
      >>> lookup_rows(jnp.array([[0.0], [10.0]]), jnp.array([0.0, 0.25, 2.0]))[:, 0].tolist()
      [0.0, 2.5, nan]
    """
    if jnp.issubdtype(rows.dtype, jnp.integer):
        # A negative index would count from the end.
        outside = jnp.where(rows < 0, table.shape[0], rows)
        return table.at[outside].get(mode='fill', fill_value=jnp.nan)
    below = jnp.floor(rows)
    share = (rows - below)[..., None]
    below = below.astype(jnp.int32)
    above = jnp.where(share[..., 0] > 0, below + 1, below)
    return lookup_rows(table, below) * (1 - share) + lookup_rows(table, above) * share
