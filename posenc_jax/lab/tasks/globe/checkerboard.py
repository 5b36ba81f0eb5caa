"""A checkerboard on the globe: places have the label of their nearest support point."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.lab.tasks.globe.globe_task import GlobeTask
from posenc_jax.lab.tasks.globe.places import fibonacci_lattice, nearest
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

MOST_SUPPORT = 2**16  # each place is compared with all of them


def checkerboard_labels(points: int = 200, classes: int = 16) -> Int[np.ndarray, 'M']:
    """`i mod K` of the support points i = -M/2 .. M/2 - 1 of the Fibonacci lattice.

    Args:
      points: M, even.
      classes: K.

    Raises:
      ValueError: fewer than one class, or more classes than points.
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
    """
    support = fibonacci_lattice(points)
    return checkerboard_labels(points, classes)[nearest(places, support)]


@register('checkerboard', kind='task')
@dataclasses.dataclass(frozen=True)
class Checkerboard(GlobeTask):
    """The label of the nearest of M support points, which lie on a Fibonacci lattice.

    The cells of the support points are as large everywhere, also at the poles, so accuracy by
    latitude shows what an encoder does there. More of them make smaller cells: the resolution of an
    encoder is found by runs with other `support`. Spherical harmonics of L degrees resolve cells of
    about 180 / L degrees; the spacing of 200 points is 13.8 degrees.

    The task length is the number of places of the lattice that evaluation reads. `GlobeTask` has
    further arguments.

    Args:
      support: M, how many support points, even.
      classes: K; the support points have them in turn.

    Raises:
      SpecError: an odd number of support points, or more classes than those.
      ValueError: at call, a length that is odd.

    Reference: Russwurm et al., arXiv 2310.06743.

    Example:
      >>> task = Checkerboard(support=20, classes=4, samples=100)
      >>> batch = task.sample(np.random.default_rng(0), 5, 50)
      >>> batch['coords'].shape, batch['targets'].shape, task.evaluation_points(50).coords.shape
      ((5, 2), (5,), (50, 2))
    """

    support: int = 200
    classes: int = 16

    def __post_init__(self):
        super().__post_init__()
        if self.support < 2 or self.support % 2 or self.support > MOST_SUPPORT:
            nearest = min(max(self.support + self.support % 2, 2), MOST_SUPPORT)
            raise SpecError(
                f'checkerboard support must be even, in 2 .. {MOST_SUPPORT}, got {self.support}; '
                f'nearest: {nearest}'
            )
        if not 1 <= self.classes <= self.support:
            raise SpecError(
                f'checkerboard classes must lie in 1 .. {self.support}, the number of support '
                f'points, got {self.classes}'
            )

    @property
    def output_size(self):
        return self.classes

    def classes_of(self, places):
        return checkerboard(places, self.support, self.classes)
