"""Classes of clouds of points."""

from posenc_jax.lab.tasks.points.point_task import PointTask
from posenc_jax.lab.tasks.points.points_folder import PointsFolder
from posenc_jax.lab.tasks.points.shapes import Shapes
