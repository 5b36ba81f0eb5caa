"""Door 3: rotations of queries and keys."""

from posenc_jax.rotation import carope, conflator, frequencies, psc, rope, tapa, xpos
