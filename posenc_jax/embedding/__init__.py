"""Door 2: what is added to the token vectors at the input of the model, or takes the place of
some.
"""

from posenc_jax.embedding import learned_absolute, papeft, sigma_gpt, sinusoidal
