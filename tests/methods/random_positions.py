"""What encodings that draw positions refuse."""

import jax
import pytest

import posenc_jax as pj


def refused_beyond(encoding, length, limit, *, key):
    """So many tokens have a position beyond the limit; known and traced, the error names both."""
    key, tok = None if key is None else jax.random.key(key), pj.Tokens.of(length=length)
    last, place = length - 1, lambda tok: encoding.place(tok, key=key)
    with pytest.raises(ValueError, match=f'position {last} is not in 0 .. {limit}'):
        place(tok)
    with pytest.raises(ValueError, match=f'position {last}, which is not in 0 .. {limit}'):
        jax.eval_shape(place, tok)
