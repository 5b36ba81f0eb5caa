"""Classes of images."""

from posenc_jax.tasks.images.image_task import ImageTask
from posenc_jax.tasks.images.quadrant import Quadrant
