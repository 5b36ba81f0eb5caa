"""Depthwise convolutions over grids and lines of tokens."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def check_kernel(user: str, kernel: int) -> int:
    """`kernel` if it is the side of a kernel that has a middle.

    Raises:
      ValueError: a side that is even or below 1; the message has the nearest odd ones.

    Example:
      >>> check_kernel('peg', 3)
      3
    """
    if kernel < 1 or kernel % 2 == 0:
        nearest = f'{kernel - 1} or {kernel + 1}' if kernel > 1 else '1'
        raise ValueError(
            f'{user} kernel must be odd, so that it has a middle; got {kernel}, nearest: {nearest}'
        )
    return kernel


_UNROLLED = 9  # the largest kernel whose entries are written out one by one


def depthwise(
    x: Float[Array, 'B rows columns C'], kernel: Float[Array, 'k k C'], *, circular: bool = False
) -> Float[Array, 'B rows columns C']:
    """Each channel's cross-correlation with its own odd kernel. Outside the grid are zeros, or its
    other side if it is a torus, which a large kernel may go around more than once.

    It is a sum of shifted grids, and not a grouped convolution of XLA: that is tens of times slower
    on a CPU, and on a mesh that cuts rows of the batch the gradient of its kernel is too large by
    the number of the parts.

    Example:
      >>> depthwise(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1)))[0, :, :, 0].tolist()
      [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    size, (_, rows, columns, _) = kernel.shape[0], x.shape
    sides = ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0))
    padded = jnp.pad(x, sides, mode='wrap' if circular else 'constant')
    kernel = kernel.astype(x.dtype)

    def of_row(weights, row):
        cells = jax.lax.dynamic_slice_in_dim(padded, row, rows, axis=1)
        shifted = [weights[j] * cells[:, :, j : j + columns] for j in range(size)]
        return functools.reduce(jnp.add, shifted)

    if size <= _UNROLLED:
        return functools.reduce(jnp.add, [of_row(kernel[row], row) for row in range(size)])
    add = lambda total, at: (total + of_row(*at), None)
    added = jax.checkpoint(add, prevent_cse=False)
    return jax.lax.scan(added, jnp.zeros_like(x), (kernel, jnp.arange(size)))[0]


def over_grid(
    x: Float[Array, 'B L C'], grid: tuple[int, int], f: Callable[[Array], Array]
) -> Float[Array, 'B L C']:
    """`f` of the cells as [B, rows, columns, C]; the tokens in front of them stay as they are.

    Example:
      >>> over_grid(jnp.arange(5.0).reshape(1, 5, 1), (2, 2), lambda x: -x)[0, :, 0].tolist()
      [0.0, -1.0, -2.0, -3.0, -4.0]
    """
    rows, columns = grid
    extra = x.shape[1] - rows * columns
    cells = f(x[:, extra:].reshape(len(x), rows, columns, x.shape[-1]))
    return jnp.concatenate([x[:, :extra], cells.reshape(len(x), -1, x.shape[-1])], axis=1)
