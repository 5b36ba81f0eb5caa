"""The orders of `point_orders` within a program of JAX, for clouds whose points it computes with.

Keys of 60 bits do not fit the integers of JAX, so a key is a tuple of numbers, compared one after
the other. The number of cells along an axis is known only when the program runs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.features.coordinates.point_orders import BITS, CELL, ORDERS, TRAVERSES
from posenc_jax.protocol.errors import check_choice

Words = tuple[Int[Array, 'B N'], ...]  # from the most significant on
HALF = BITS // 2


def traced_cells(
    points: Float[Array, 'B N 3'], valid: Bool[Array, '#B N'] | None = None, size: float = CELL
) -> tuple[Int[Array, 'B N 3'], Bool[Array, 'B']]:
    """`grid_cells` of every cloud, 0 where points are padding, and whether the cloud fits the grid:
    its points are finite and lie within 2**BITS cells along every axis.
    """
    real = jnp.ones((1, points.shape[1], 1), bool) if valid is None else valid[..., None]
    cells = jnp.floor(points.astype(jnp.float32) / size)
    cells = cells - jnp.where(real, cells, jnp.inf).min(axis=1, keepdims=True)
    fits = (~real | (jnp.isfinite(cells) & (cells < 2**BITS))).all(axis=(1, 2))
    kept = real & fits[:, None, None]
    return jnp.where(kept, cells, 0).astype(jnp.int32), fits


def traverse_words(cells: Int[Array, 'B N 3'], order: str) -> Words:
    """`traverse_key` as the three places of a cell along the axes, each counted in the direction in
    which the path takes it.
    """
    a, b, c = (cells[..., 'xyz'.index(axis)] for axis in check_choice('order', order, TRAVERSES))
    back = lambda odd, q: jnp.where(odd % 2 == 1, q.max(axis=1, keepdims=True) - q, q)
    return c, back(c, b), back(b + c, a)


def interleaved_words(axes: tuple[Int[Array, 'B N'], ...]) -> Words:
    """`interleaved` in two words of 30 bits."""
    words = []
    for low in (HALF, 0):
        word = jnp.zeros_like(axes[0])
        for bit in range(HALF):
            for place, axis in enumerate(axes):
                word |= ((axis >> (low + bit)) & 1) << (3 * bit + 2 - place)
        words.append(word)
    return tuple(words)


def hilbert_words(cells: Int[Array, 'B N 3']) -> Words:
    """`hilbert_key`, with the cube of every cloud, in two words of 30 bits."""
    first, largest = [cells[..., axis] for axis in range(3)], cells.max(axis=(1, 2))[:, None]
    levels = 1 << jnp.arange(BITS - 1, 0, -1)

    def undo(axes, level):
        axes, below = list(axes), level - 1
        for axis in range(3):
            is_set = (axes[axis] & level) != 0
            swapped = jnp.where(is_set, 0, (axes[0] ^ axes[axis]) & below)
            # The cube of a cloud has no levels above its largest cell.
            within = level <= largest
            axes[0] = axes[0] ^ jnp.where(within, jnp.where(is_set, below, swapped), 0)
            if axis:
                axes[axis] = axes[axis] ^ jnp.where(within, swapped, 0)
        return tuple(axes), None

    (x, y, z), _ = jax.lax.scan(undo, tuple(first), levels)
    y = y ^ x
    z = z ^ y
    turn = lambda turned, level: (turned ^ jnp.where((z & level) != 0, level - 1, 0), None)
    turned, _ = jax.lax.scan(turn, jnp.zeros_like(z), levels)
    return interleaved_words((x ^ turned, y ^ turned, z ^ turned))


def traced_order(
    points: Float[Array, 'B N 3'],
    order: str,
    valid: Bool[Array, '#B N'] | None = None,
    size: float = CELL,
) -> tuple[Int[Array, 'B N'], Bool[Array, 'B']]:
    """`point_order` of every cloud, with padding behind all points, and whether it fits the grid
    (see `traced_cells`); the order of a cloud that does not fit has no meaning.

    Raises:
      SpecError: an unknown order.
    """
    check_choice('order', order, ORDERS)
    cells, fits = traced_cells(points, valid, size)
    if order == 'hilbert':
        words = hilbert_words(cells)
    elif order in TRAVERSES:
        words = traverse_words(cells, order)
    else:
        x, y, z = (cells[..., axis] for axis in range(3))
        words = interleaved_words((x, y, z) if order == 'z' else (y, x, z))
    padding = () if valid is None else (jnp.broadcast_to(~valid, cells.shape[:2]),)
    keys = (*padding, *words)
    place = jnp.broadcast_to(jnp.arange(cells.shape[1], dtype=jnp.int32), cells.shape[:2])
    sorted_keys = jax.lax.sort((*keys, place), dimension=1, num_keys=len(keys), is_stable=True)
    return sorted_keys[-1], fits
