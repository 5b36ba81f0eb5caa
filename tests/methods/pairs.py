"""Queries, keys and values at random, and their attention: the pair stage in tests of methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import posenc_jax as pj


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def qkv(length, heads=4, kv_heads=None, width=8, rows=1):
    """Queries [rows, length, heads, width], keys and values."""
    kv_heads = heads if kv_heads is None else kv_heads
    return tuple(
        draw(seed, rows, length, n, width) for seed, n in enumerate((heads, kv_heads, kv_heads))
    )


@functools.partial(jax.jit, static_argnames=('block', 'implementation'))
def attend(encoding, q, k, v, tok=None, x=None, **how):
    """Attention from the projections on; the tokens are one text if they are not given.

    Args:
      x: the layer input, of an encoding that reads it.
    """
    tok = pj.Tokens.of(length=q.shape[1]) if tok is None else tok
    if x is not None:
        x = jnp.pad(x, ((0, 0), (encoding.lookback, 0), (0, 0)))
    q, k, v, tq, tk = encoding.project(q, k, v, tok, tok, x)
    return pj.attend(encoding, q, k, v, tq, tk, applied=pj.TOKEN_STAGE, **how)


def bias_of(encoding, length=30):
    """What a bias adds to the logits [N, T, S] of one text."""
    pos = jnp.arange(length)[None]
    return np.asarray(encoding.bias(pos, pos)[0])


def grid(rows, columns, beside=1):
    """Positions [1, beside + rows columns, 2] of a grid, with tokens beside it in front."""
    cells = np.stack(np.divmod(np.arange(rows * columns), columns), axis=-1)
    return np.concatenate([np.full((beside, 2), -1), cells])[None]
