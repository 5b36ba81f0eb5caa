"""Door 5: which keys a query may see."""

from posenc_jax.mask import prefix, window
