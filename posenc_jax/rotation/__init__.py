"""Door 3: rotations of queries and keys."""

from posenc_jax.rotation import frequencies, rope, xpos
