"""The logits of a whole text, for tests of methods, from queries and keys as a layer has them."""

import jax
import jax.numpy as jnp

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits


@jax.jit
def logits(encoding, q, k, tok=None, x=None):
    """[B, N, T, S] of `q`, `k` [B, L, heads, H]; those of keys that are not seen mean nothing.

    Args:
      tok: of both; one text whose positions count from 0 if it is not given.
      x: the layer input, of an encoding that reads it.
    """
    tok = pj.Tokens.of(length=q.shape[1]) if tok is None else tok
    if x is not None:
        x = jnp.pad(x, ((0, 0), (encoding.lookback, 0), (0, 0)))
    q, k, _, tq, tk = encoding.project(q, k, k, tok, tok, x)
    return pair_logits(encoding, q.swapaxes(1, 2), k.swapaxes(1, 2), tq, tk)[0]
