"""Comparisons of the laws: each raises `BrokenLaw` with the largest difference."""

from typing import Any

import jax
import numpy as np

# For numbers of order one: the rounding error of float32 sums, and a difference of results.
SAME, DIFFERENT = 2e-5, 1e-3


class BrokenLaw(AssertionError):
    """An encoding does not keep a law; the message says which, and by how much."""


def demand(condition: Any, message: str) -> None:
    """Raises BrokenLaw with a message unless a condition holds."""
    if not condition:
        raise BrokenLaw(message)


def gap(a: Any, b: Any) -> float:
    """The largest absolute difference of two arrays.

    Example:
      >>> gap([1.0, 2.0], [1.0, 2.5])
      0.5
    """
    return float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))))


def close(a: Any, b: Any, tolerance: float = SAME, what: str = 'the results') -> None:
    """Raises BrokenLaw unless two arrays have one shape and agree up to a tolerance, which is
    relative and absolute.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    demand(a.shape == b.shape, f'{what} have the shapes {a.shape} and {b.shape}')
    demand(np.isfinite(a).all(), f'{what} are not finite')
    demand(
        np.allclose(a, b, rtol=tolerance, atol=tolerance),
        f'{what} differ by up to {gap(a, b):.3g}; rounding explains {tolerance:.0e}',
    )


def close_gradients(a: Any, b: Any) -> None:
    """Raises BrokenLaw unless gradients are finite and equal. The absolute tolerance grows with the
    largest entry, because some exact gradients are zero.
    """
    ours, theirs = jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)
    for (path, one), other in zip(ours, theirs, strict=True):
        name = f'gradients {jax.tree_util.keystr(path)}'
        demand(np.isfinite(one).all(), f'{name} are not finite')
        least = 5 * SAME * max(1.0, float(np.abs(other).max()))
        demand(
            np.allclose(one, other, rtol=1e-3, atol=least),
            f'{name} differ by up to {gap(one, other):.3g}; rounding explains {least:.0e}',
        )


def equal_trees(a: Any, b: Any, what: str) -> None:
    """Raises BrokenLaw unless two trees have one structure and equal numbers."""
    demand(jax.tree.structure(a) == jax.tree.structure(b), f'{what} have different structures')
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        same = np.array_equal(np.asarray(one), np.asarray(other))
        demand(same, f'{what} differ by up to {gap(one, other):.3g}')


def holds(promise: bool, name: str, distance: float) -> None:
    """Raises BrokenLaw unless a distance is zero up to rounding exactly if a property is promised.
    A distance between the two thresholds decides nothing, and it raises too.
    """
    demand(
        distance < SAME * 5 or distance > DIFFERENT,
        f'the difference {distance:.3g} is too large for rounding and too small for an effect',
    )
    demand(
        (distance < SAME * 5) == promise,
        f'the promise is {name}={promise}, and the results differ by {distance:.3g}',
    )
