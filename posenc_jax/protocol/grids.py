"""Positions on a grid: which tokens have one, and how large the grid is."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num

from posenc_jax.protocol.checks import is_size
from posenc_jax.protocol.length import document_max
from posenc_jax.protocol.tables import known_range
from posenc_jax.protocol.tokens import Tokens

# For `check_grid`: no row and no column may be negative.
ANY_SIZE = 2**31 - 1, 2**31 - 1


def on_grid(pos: Num[Array, '#B L P']) -> Bool[Array, '#B L']:
    """Which tokens stand on the grid: those with a component that is not negative.

    Tokens in front of a grid, such as a class token or conditions, have negative components alone;
    models give them -1.

    Raises:
      ValueError: positions without components.

    Example:
      >>> on_grid(jnp.array([[[-1, -1], [0, 0], [0, 3], [-2, 3]]])).tolist()
      [[False, True, True, True]]
    """
    if pos.ndim != 3:
        raise ValueError(f'a grid needs positions [B, L, P] with components, got {pos.shape}')
    return ~(pos < 0).all(-1)


def check_grid(
    user: str,
    pos: Num[Array, '#B L *P'],
    *,
    whole: bool = False,
    within: tuple[int, int] | None = None,
    valid: Bool[Array, '#B L'] | None = None,
) -> None:
    """Refuses positions that are not (row, column).

    Args:
      user: who reads them, for the message.
      pos: positions of tokens.
      whole: whether fractions are refused too.
      within: rows and columns of the grid in which real tokens must lie, as far as their positions
        are known.
      valid: False for padding.

    Raises:
      ValueError: another shape than [B, L, 2]; with `whole`, positions that are not integers; a row
        or a column beyond `within`.

    Example:
      >>> check_grid('this', jnp.array([[[1, 5]]]), within=(2, 5))
      Traceback (most recent call last):
      ValueError: this: column 5 is not in 0 .. 4
    """
    fractional = whole and not jnp.issubdtype(pos.dtype, jnp.integer)
    if pos.ndim != 3 or pos.shape[2] != 2 or fractional:
        raise ValueError(
            f'{user} needs {"integer " * whole}positions [B, L, 2], row and column, got '
            f'{pos.dtype} {pos.shape}; give them by Tokens.of(positions=...)'
        )
    if within is None:
        return
    for name, place, count in zip(('row', 'column'), jnp.moveaxis(pos, -1, 0), within):
        for end in known_range(jnp.where(on_grid(pos), place, 0), valid) or ():
            if not 0 <= end < count:
                raise ValueError(f'{user}: {name} {end} is not in 0 .. {count - 1}')


def check_size(user: str, rows: int | None, columns: int | None) -> tuple[int, int] | None:
    """The size of a grid, or None if neither number is given.

    Raises:
      ValueError: one of the numbers alone, or one that is not an integer of at least 1.

    Example:
      >>> check_size('this', 2, 3), check_size('this', None, None)
      ((2, 3), None)
    """
    if rows is None and columns is None:
        return None
    if rows is None or columns is None or not (is_size(rows) and is_size(columns)):
        raise ValueError(
            f'{user} rows and columns must be integers of at least 1, got {rows} and {columns}'
        )
    return rows, columns


def grid_size(tok: Tokens) -> Int[Array, '#B L P']:
    """The size of the grid of every token: the largest position of the valid tokens of its row, or
    of its packed document, plus one, in every component. It is 1 where no token is on the grid.

    Raises:
      ValueError: positions without components, or that are not integers.

    Example:
      >>> tok = Tokens.of(positions=[[[-1, -1], [0, 0], [0, 2], [1, 1]]])
      >>> grid_size(tok)[0, 0].tolist()
      [2, 3]
    """
    if tok.pos.ndim != 3 or not jnp.issubdtype(tok.pos.dtype, jnp.integer):
        raise ValueError(
            'the size of a grid needs integer positions [B, L, P] with components, got '
            f'{tok.pos.dtype} {tok.pos.shape}'
        )
    pos = jnp.maximum(tok.pos, 0)
    if tok.valid is not None:
        pos = jnp.where(tok.valid[..., None], pos, 0)
    if tok.segment is None:
        return jnp.broadcast_to(pos.max(1, keepdims=True) + 1, pos.shape)
    return document_max(pos, tok.segment) + 1
