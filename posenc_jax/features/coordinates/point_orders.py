"""Orders of the points of a cloud along curves through a grid, on the host.

`traced_orders` in this folder computes the same orders within a program of JAX.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from posenc_jax.protocol.errors import check_choice, check_number

# The six traverses name the axes from the fastest to the slowest.
TRAVERSES = ('xyz', 'xzy', 'yxz', 'yzx', 'zxy', 'zyx')
ORDERS = (*TRAVERSES, 'hilbert', 'z', 'z-trans')  # the cycle of the paper
BITS = 20  # of a cell along each axis
CELL = 0.02  # side of a cell


def check_points(points: Any, what: str = 'points') -> Float[np.ndarray, 'N 3']:
    """Points as float64.

    Args:
      points: numbers [N, 3].
      what: what they are called in the message.

    Raises:
      ValueError: another shape, no points, or coordinates that are not finite.
    """
    found = np.asarray(points)
    if found.ndim != 2 or found.shape[1] != 3:
        raise ValueError(f'{what}: expected coordinates [N, 3], got an array {found.shape}')
    if not len(found):
        raise ValueError(f'{what}: a cloud has at least one point, got none')
    if not np.issubdtype(found.dtype, np.number) or np.iscomplexobj(found):
        raise ValueError(f'{what}: coordinates are real numbers, got {found.dtype}')
    found = found.astype(np.float64)
    if not (finite := np.isfinite(found).all(axis=1)).all():
        first = int(np.argmin(finite))
        raise ValueError(
            f'{what}: {np.sum(~finite)} of {len(found)} points are not finite, the first is number '
            f'{first}: {found[first].tolist()}'
        )
    return found


def grid_cells(points: Num[np.ndarray, 'N 3'], size: float = CELL) -> Int[np.ndarray, 'N 3']:
    """The cells of side `size` in which points lie, counted from the smallest along each axis.

    Raises:
      ValueError: as for `check_points`; a size that is not positive; a cloud of more than 2**BITS
        cells along an axis.
    """
    check_number('the side of a cell', size, above=0)
    cells = np.floor(check_points(points) / size)
    cells -= cells.min(axis=0)
    if cells.max() >= 2**BITS:
        raise ValueError(
            f'the cloud is {int(cells.max()) + 1} cells of {size} long, at most {2**BITS} are '
            f'accepted; use a size of at least {size * (cells.max() + 1) / 2**BITS:.3g}'
        )
    return cells.astype(np.int64)


def traverse_key(cells: Int[np.ndarray, 'N 3'], order: str) -> Int[np.ndarray, 'N']:
    """The number of every cell along a path that turns round at the end of each line.

    With the axes A, B, C of `order` and m = max + 1 along each of them: `k1 = q_A`; `k2 = q_B m_A +
    k1`, or `q_B m_A + m_A - 1 - k1` where q_B is odd; `key = q_C m_A m_B + k2`, or `q_C m_A m_B +
    m_A m_B - 1 - k2` where q_C is odd. Consecutive cells of a full grid are neighbours.

    Raises:
      SpecError: an order that is no traverse.
    """
    check_choice('order', order, TRAVERSES)
    a, b, c = (cells[:, 'xyz'.index(axis)] for axis in order)
    line = a.max() + 1
    plane = line * (b.max() + 1)
    k2 = b * line + np.where(b % 2 == 0, a, line - 1 - a)
    return c * plane + np.where(c % 2 == 0, k2, plane - 1 - k2)


def interleaved(cells: Int[np.ndarray, 'N 3']) -> Int[np.ndarray, 'N']:
    """The bits of x, y, z in turn: bit i of x is bit 3 i + 2, that of y 3 i + 1, that of z 3 i."""
    bits = (cells[:, :, None] >> np.arange(BITS)) & 1
    return (bits << (3 * np.arange(BITS) + np.array([[2], [1], [0]]))).sum(axis=(1, 2))


def hilbert_key(cells: Int[np.ndarray, 'N 3']) -> Int[np.ndarray, 'N']:
    """The number of every cell along a Hilbert curve, by Skilling's algorithm.

    The curve fills a cube whose side is the smallest power of two above all cells.
    """
    axes = [cells[:, axis].copy() for axis in range(3)]
    levels = [1 << bit for bit in reversed(range(int(cells.max()).bit_length()))]
    for level in levels[:-1]:  # undo the rotations of the larger cubes
        below = level - 1
        for axis in range(3):
            swapped = np.where(axes[axis] & level, 0, (axes[0] ^ axes[axis]) & below)
            axes[0] ^= np.where(axes[axis] & level, below, swapped)
            if axis:
                axes[axis] ^= swapped
    axes[1] ^= axes[0]  # Gray code
    axes[2] ^= axes[1]
    turned = np.zeros_like(axes[0])
    for level in levels[:-1]:
        turned ^= np.where(axes[2] & level, level - 1, 0)
    return interleaved(np.stack([axis ^ turned for axis in axes], axis=1))


def point_key(cells: Int[np.ndarray, 'N 3'], order: str) -> Int[np.ndarray, 'N']:
    """The numbers of cells along a curve.

    Args:
      cells: at least 0 and below 2**BITS.
      order: one of `ORDERS`; 'z-trans' is 'z' with x and y exchanged.

    Raises:
      SpecError: an unknown order.
    """
    if check_choice('order', order, ORDERS) == 'hilbert':
        return hilbert_key(cells)
    if order in TRAVERSES:
        return traverse_key(cells, order)
    return interleaved(cells if order == 'z' else cells[:, [1, 0, 2]])


def point_order(
    points: Num[np.ndarray, 'N 3'], order: str, size: float = CELL
) -> Int[np.ndarray, 'N']:
    """The numbers of the points in their order along a curve. Points of one cell keep theirs.

    Args:
      points: coordinates.
      order: one of `ORDERS`.
      size: side of a cell of the grid, in the unit of the coordinates.

    Raises:
      ValueError: as for `grid_cells`; SpecError for an unknown order.

    Example:
      >>> point_order(np.array([[0.9, 0.0, 0.0], [0.1, 0.0, 0.0], [0.5, 0.0, 0.0]]), 'xyz').tolist()
      [1, 2, 0]
    """
    return np.argsort(point_key(grid_cells(points, size), order), kind='stable')
