"""Pictures that fields are fitted to: their values, or the bits of them."""

from posenc_jax.tasks.pictures.bit_planes import BitPlanes
from posenc_jax.tasks.pictures.picture import Picture
