"""Door 1: which position each token believes it has."""

from posenc_jax.positions import bipe, giraffe_random, gpe, position_coupling, randomized_pe, v2pe
