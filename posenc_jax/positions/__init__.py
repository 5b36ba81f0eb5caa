"""Door 1: which position each token believes it has."""

from posenc_jax.positions import giraffe_random, gpe, position_coupling, positional_description, randomized_pe, v2pe
