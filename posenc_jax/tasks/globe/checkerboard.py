"""A checkerboard on the globe: places have the label of their nearest support point."""

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.tasks.globe.places import fibonacci_lattice, nearest, random_places


def checkerboard_labels(points: int = 200, classes: int = 16) -> Int[np.ndarray, 'M']:
    """`i mod K` of the support points i = -M/2 .. M/2 - 1 of the Fibonacci lattice.

    Args:
      points: M, even.
      classes: K.

    Raises:
      ValueError: fewer than one class, or more classes than points.

    Example:
      >>> checkerboard_labels(20, 4)[:6].tolist()
      [2, 3, 0, 1, 2, 3]
    """
    if not 1 <= classes <= points:
        raise ValueError(
            f'a checkerboard of {points} points has 1 .. {points} classes, got {classes}'
        )
    return np.arange(-points // 2, points // 2) % classes


def checkerboard(
    places: Float[np.ndarray, 'N 2'], points: int = 200, classes: int = 16
) -> Int[np.ndarray, 'N']:
    """The label of the nearest support point along the sphere.

    Args:
      places: (longitude, latitude) in degrees.
      points: M, support points on a Fibonacci lattice, even. More points make smaller cells; their
        spacing is `mean_spacing(fibonacci_lattice(points))`.
      classes: K.

    Raises:
      ValueError: M is odd or below 2; K is not in 1 .. M.

    Example:
      >>> checkerboard(fibonacci_lattice(20), points=20, classes=4)[:4].tolist()
      [2, 3, 0, 1]
    """
    support = fibonacci_lattice(points)
    return checkerboard_labels(points, classes)[nearest(places, support)]


def checkerboard_samples(
    rng: np.random.Generator, count: int, points: int = 200, classes: int = 16
) -> tuple[Float[np.ndarray, 'N 2'], Int[np.ndarray, 'N']]:
    """Random places and their labels, for training and validation with two seeds; a test takes the
    places of a Fibonacci lattice.

    Example:
      >>> places, labels = checkerboard_samples(np.random.default_rng(0), 5)
      >>> places.shape, labels.shape
      ((5, 2), (5,))
    """
    places = random_places(rng, count)
    return places, checkerboard(places, points, classes)
