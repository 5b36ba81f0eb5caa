"""Classes of images."""

from posenc_jax.lab.tasks.images.blobs import Blobs, Quadrant
from posenc_jax.lab.tasks.images.digits import Digits
from posenc_jax.lab.tasks.images.folder import Folder
from posenc_jax.lab.tasks.images.image_task import ImageTask
from posenc_jax.lab.tasks.images.textures import Textures
