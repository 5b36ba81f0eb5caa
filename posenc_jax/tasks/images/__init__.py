"""Classes of images."""

from posenc_jax.tasks.images.blobs import Blobs
from posenc_jax.tasks.images.digits import Digits
from posenc_jax.tasks.images.folder import Folder
from posenc_jax.tasks.images.image_task import ImageTask
from posenc_jax.tasks.images.quadrant import Quadrant
from posenc_jax.tasks.images.textures import Textures
