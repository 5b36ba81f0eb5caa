"""Door 1: which position each token believes it has."""

from posenc_jax.positions import position_coupling, randomized_pe
