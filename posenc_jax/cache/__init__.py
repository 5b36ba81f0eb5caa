"""What may be done to a filled decode cache besides appending to it."""

from posenc_jax.cache import pie
