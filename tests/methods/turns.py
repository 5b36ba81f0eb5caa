"""Queries or keys as an encoding turns them, compiled: many small operations take longer."""

import jax


@jax.jit
def turn_of(part, x, tok):
    return part.turned(x, tok)


@jax.jit
def place_of(part, tok, key=None):
    """The tokens with the positions that the encoding gives them."""
    return part.place(tok, key=key)
