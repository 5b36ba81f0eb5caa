"""Pictures that fields are fitted to: their values, or the bits of them."""

from posenc_jax.lab.tasks.pictures.bit_planes import BitPlanes
from posenc_jax.lab.tasks.pictures.picture import Picture
