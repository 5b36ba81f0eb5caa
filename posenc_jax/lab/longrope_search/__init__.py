"""Search for the factors of `longrope`: `python -m posenc_jax.lab.longrope_search`."""
