"""A task that asks on which of five surfaces the points lie; it needs no data."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.lab.tasks.points.point_task import PointTask
from posenc_jax.protocol.bounds import NonNegative
from posenc_jax.protocol.registry import register

Points = Float[np.ndarray, 'n 3']


def sphere(rng: np.random.Generator, n: int) -> Points:
    """n points, uniform on the sphere of radius 1."""
    points = rng.standard_normal((n, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def cube(rng: np.random.Generator, n: int) -> Points:
    """n points, uniform on the surface of the cube of side 1.5."""
    points = rng.uniform(-0.75, 0.75, (n, 3))
    points[np.arange(n), rng.integers(0, 3, n)] = rng.choice([-0.75, 0.75], n)
    return points


def _around(rng, radius: np.ndarray, height: np.ndarray) -> Points:
    """Points of given distances from the axis z and heights, at random angles."""
    angle = rng.uniform(0, 2 * np.pi, len(radius))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)


def cylinder(rng: np.random.Generator, n: int) -> Points:
    """n points, uniform on a closed cylinder around z of radius 0.75 and height 1.5."""
    lid = rng.uniform(size=n) < 1 / 3  # the two lids have half the area of the side
    radius = 0.75 * np.where(lid, np.sqrt(rng.uniform(size=n)), 1)
    height = np.where(lid, rng.choice([-0.75, 0.75], n), rng.uniform(-0.75, 0.75, n))
    return _around(rng, radius, height)


def torus(rng: np.random.Generator, n: int) -> Points:
    """n points, uniform on a torus around z, whose tube of radius 0.35 has a centre line of radius
    0.7.
    """
    tube = np.empty(0)
    while len(tube) < n:  # the outer side has more area: angles are kept by their radius
        angle = rng.uniform(0, 2 * np.pi, 2 * n)
        kept = rng.uniform(0, 1.05, 2 * n) < 0.7 + 0.35 * np.cos(angle)
        tube = np.concatenate([tube, angle[kept]])[:n]
    return _around(rng, 0.7 + 0.35 * np.cos(tube), 0.35 * np.sin(tube))


def cone(rng: np.random.Generator, n: int) -> Points:
    """n points, uniform on a closed cone around z of radius 0.85 and height 1.5, with
    its mean at 0.
    """
    base = rng.uniform(size=n) < 0.85 / (0.85 + np.hypot(0.85, 1.5))
    share = np.sqrt(rng.uniform(size=n))  # of the way from the tip, or from the centre of the base
    return _around(rng, 0.85 * share, np.where(base, -0.33, 1.17 - 1.5 * share))


SHAPES: dict[str, Callable[[np.random.Generator, int], Points]] = {
    'sphere': sphere,
    'cube': cube,
    'cylinder': cylinder,
    'torus': torus,
    'cone': cone,
}


@register('shapes', kind='task')
@dataclasses.dataclass(frozen=True)
class Shapes(PointTask):
    """N points on the surface of a sphere, a cube, a cylinder, a torus or a cone, which is the
    class: 0 to 4.

    Every cloud is stretched along each axis, turned around z, moved, and blurred by noise. Further
    arguments are those of `PointTask`.

    Args:
      noise: standard deviation of the noise, in radii of the sphere.
      stretch: factors along the axes are drawn between 1 / (1 + stretch) and 1 + stretch.
      shift: standard deviation of the place of a cloud.

    Example:
      >>> batch = Shapes(order='xyz').sample(np.random.default_rng(0), batch=3, length=64)
      >>> batch['vectors'].shape, batch['targets'].tolist()
      ((3, 64, 3), [[4], [3], [2]])
    """

    noise: NonNegative = 0.08
    stretch: NonNegative = 0.3
    shift: NonNegative = 0.1

    @property
    def output_size(self) -> int:
        return len(SHAPES)

    def clouds(self, rng, counts):
        classes = rng.integers(0, len(SHAPES), len(counts))
        draw = list(SHAPES.values())
        return [self._cloud(rng, draw[c], n) for c, n in zip(classes, counts)], classes

    def _cloud(self, rng, draw, n: int) -> Points:
        factors = (1 + self.stretch) ** rng.uniform(-1, 1, 3)
        angle = rng.uniform(0, 2 * np.pi)
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        points = draw(rng, int(n)) * factors @ turn + self.shift * rng.standard_normal(3)
        return points + self.noise * rng.standard_normal(points.shape)

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        """Names of the shapes as text."""
        return ' '.join(list(SHAPES)[int(i)] for i in ids)
