"""Shifted basis features on grids: Kronecker products, the closed form of a linear model, blending
between grid points, stable rank and distance preservation.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from posenc_jax.protocol.errors import check_choice

Kernel = Callable[[Array, Array], Array]  # K(x1, x2) of coordinates, elementwise
CLOSED = ('gaussian', 'triangle', 'rff')
LAST = 1 - 1e-3  # points are clamped to [0, LAST] before they are blended


def kron_features(
    psi_x: Float[Array, '... D'], psi_y: Float[Array, '... E']
) -> Float[Array, '... DE']:
    """`psi(x) kron psi(y)`: the products of all pairs of features, y the faster."""
    product = psi_x[..., :, None] * psi_y[..., None, :]
    return product.reshape(*product.shape[:-2], -1)


def kron_linear(
    psi_x: Float[Array, '... D'], psi_y: Float[Array, '... E'], w: Float[Array, 'D E O']
) -> Float[Array, '... O']:
    """`psi(x)^T W psi(y)` for every output: a linear layer of `kron_features` that never forms
    them.
    """
    by_x = jnp.einsum('...d,deo->...eo', psi_x, w, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum('...e,...eo->...o', psi_y, by_x, precision=jax.lax.Precision.HIGHEST)


def separable_fit(
    psi_x: Float[np.ndarray, 'N D'],
    psi_y: Float[np.ndarray, 'M E'],
    values: Float[np.ndarray, 'N M'],
) -> Float[np.ndarray, 'D E']:
    """`W = X^+ Y (Y'^+)^T`, the least-squares W of smallest norm for values on a grid, float64.

    Moore-Penrose inverses are used, because solvers of least squares may return other solutions
    where X has more columns than rows. It runs on the host.

    Args:
      psi_x, psi_y: features X of the rows and Y' of the columns of the grid.
      values: Y, of the grid.

    Raises:
      ValueError: values of another grid.
    """
    psi_x, psi_y, values = (np.asarray(a, np.float64) for a in (psi_x, psi_y, values))
    if values.shape != (len(psi_x), len(psi_y)):
        raise ValueError(
            f'separable_fit takes values of the grid [{len(psi_x)}, {len(psi_y)}], got '
            f'{values.shape}'
        )
    return np.linalg.pinv(psi_x) @ values @ np.linalg.pinv(psi_y).T


def basis_kernel(basis: str, scale: float) -> Kernel:
    """K(x1, x2), a function of `delta = x1 - x2`, in the closed forms of the released code.

    'rff' `exp(-2 (pi s delta)^2)`, 'gaussian' `exp(-delta^2 / (4 s^2))`, 'triangle' `max(2 w -
    |delta|, 0)^2 / 4`, which is that code's choice and not the autocorrelation of a triangle. For
    other bases use `feature_kernel`.

    Raises:
      SpecError: a basis without a closed form.
    """
    check_choice('basis_kernel basis', basis, CLOSED)
    if basis == 'rff':
        return lambda a, b: jnp.exp(-2 * (jnp.pi * scale * (a - b)) ** 2)
    if basis == 'gaussian':
        return lambda a, b: jnp.exp(-((a - b) ** 2) / (4 * scale**2))
    return lambda a, b: 0.25 * jnp.maximum(2 * scale - jnp.abs(a - b), 0.0) ** 2


def feature_kernel(code: Callable[[Array], Array]) -> Kernel:
    """K(x1, x2) as the inner product of features."""
    return lambda a, b: (code(a) * code(b)).sum(-1)


def blend_weights(
    x: Float[Array, '...'], points: int, kernel: Kernel, *, normalized: bool = True
) -> tuple[Int[Array, '...'], Float[Array, '...'], Float[Array, '...']]:
    """The grid point left of x, and the weights of its features and its right neighbour's that come
    closest to the features of x.

    With u = x (points - 1) and g = floor(u), `a = (K(g,u) K(g+1,g+1) - K(g+1,u) K(g,g+1)) / Delta`,
    `b = (K(g+1,u) K(g,g) - K(g,u) K(g,g+1)) / Delta`, `Delta = K(g,g) K(g+1,g+1) - K(g,g+1)^2`.

    Args:
      x: coordinates; clamped to [0, 0.999].
      points: of the grid, which lie at n / (points - 1).
      kernel: K, see `basis_kernel` and `feature_kernel`.
      normalized: whether a and b are divided by their sum.

    Raises:
      ValueError: fewer than two points.
    """
    if points < 2:
        raise ValueError(f'blend_weights needs a grid of at least 2 points, got {points}')
    u = jnp.clip(x.astype(jnp.float32), 0.0, LAST) * (points - 1)
    g = jnp.floor(u).astype(jnp.int32)
    left, here, right = (a / (points - 1) for a in (g, u, g + 1))
    near, far, across = kernel(left, here), kernel(right, here), kernel(left, right)
    one, other = kernel(left, left), kernel(right, right)
    delta = one * other - across**2
    a, b = (near * other - far * across) / delta, (far * one - near * across) / delta
    return (g, a / (a + b), b / (a + b)) if normalized else (g, a, b)


def blended(
    x: Float[Array, '...'], grid: Float[Array, 'points D'], kernel: Kernel
) -> Float[Array, '... D']:
    """The features of x as a blend of those of the two grid points beside it.

    The Kronecker product of two blends is the blend of the products at the four corners of a cell,
    with the products of the weights.
    """
    g, a, b = blend_weights(x, grid.shape[0], kernel)
    return a[..., None] * grid[g] + b[..., None] * grid[g + 1]


def stable_rank(features: Float[Array, 'N D']) -> Float[Array, '']:
    """`||X||_F^2 / ||X||_2^2`: how many directions the features of N points fill. A linear model
    can memorise that many values.
    """
    spectrum = jnp.linalg.svd(features.astype(jnp.float32), compute_uv=False)
    return (spectrum**2).sum() / spectrum.max() ** 2


def distance_preservation(features: Float[Array, 'N D']) -> Float[Array, 'N']:
    """The mean of `psi(x1) . psi(x2)` over all pairs of N equispaced points that are n steps apart,
    n = 0 .. N - 1. If it falls off with the distance, a linear model generalises to near points.
    """
    products = jnp.matmul(features, features.T, precision=jax.lax.Precision.HIGHEST)
    count = features.shape[0]
    place = jnp.arange(count)
    apart = (place - place[:, None]).ravel()
    # Pairs to the left would be counted twice; the slot behind the last takes them.
    slot = jnp.where(apart >= 0, apart, count)
    sums = jnp.zeros(count + 1).at[slot].add(products.ravel())[:count]
    return sums / (count - place)
