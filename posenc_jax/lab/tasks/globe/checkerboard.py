"""A checkerboard on the globe: places have the label of their nearest support point."""

import dataclasses
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.lab.tasks.globe.globe_task import GlobeTask
from posenc_jax.lab.tasks.globe.sphere_points import fibonacci_lattice, nearest
from posenc_jax.protocol.bounds import Ge, Le, Multiple
from posenc_jax.protocol.registry import register

MOST_SUPPORT = 2**16  # each place is compared with all of them


def checkerboard_labels(points: int = 200, classes: int = 16) -> Int[np.ndarray, 'M']:
    """`i mod K` of the M support points i = -M/2 .. M/2 - 1 of the Fibonacci lattice; ValueError
    for K outside 1 .. M.
    """
    if not 1 <= classes <= points:
        raise ValueError(
            f'a checkerboard of {points} points has 1 .. {points} classes, got {classes}'
        )
    return np.arange(-points // 2, points // 2) % classes


def checkerboard(
    places: Float[np.ndarray, 'N 2'], points: int = 200, classes: int = 16
) -> Int[np.ndarray, 'N']:
    """The label of the support point that is nearest to each place (longitude, latitude) in
    degrees, along the sphere. More points on the lattice make smaller cells; their spacing is
    `mean_spacing(fibonacci_lattice(points))`.
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
      ValueError: at call, a length that is odd.

    Reference: Russwurm et al., arXiv 2310.06743.

    Example:
      >>> task = Checkerboard(support=20, classes=4, samples=100)
      >>> batch = task.sample(np.random.default_rng(0), 5, 50)
      >>> batch['coords'].shape, batch['targets'].shape, task.evaluation_points(50).coords.shape
      ((5, 2), (5,), (50, 2))
    """

    support: Annotated[int, Ge(2), Le(MOST_SUPPORT), Multiple(2)] = 200
    classes: Annotated[int, Ge(1), Le('support')] = 16

    @property
    def output_size(self):
        return self.classes

    def classes_of(self, places):
        return checkerboard(places, self.support, self.classes)
