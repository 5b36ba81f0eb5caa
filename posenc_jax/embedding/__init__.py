"""Door 2: what is added to the token vectors at the input of the model."""

from posenc_jax.embedding import learned_absolute, sigma_gpt, sinusoidal
