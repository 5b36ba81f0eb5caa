"""Attention by a table of relative positions, pair by pair in one dense array: what remapped
distances are held to.
"""

import jax
import jax.numpy as jnp
import numpy as np

import posenc_jax as pj
from posenc_jax.methods.rope import rope_frequencies
from tests.methods.pairs import attend

WIDTH = 8


def qkv(length, kv_heads=1):
    draw = lambda seed, heads: jax.random.normal(jax.random.key(seed), (1, length, heads, WIDTH))
    return draw(0, 2), draw(1, kv_heads), draw(2, kv_heads)


def run(part, tok, *arrays, **options):
    return attend(part, *arrays, tok, **options)


def logits(q, k, distance):
    """R(D_ij) q_i . k_j / sqrt(H), [B, N, T, S]; distances in float64, whole or not."""
    angles = np.asarray(distance, np.float64)[..., None] * rope_frequencies(WIDTH, 1e4)
    cos, sin = (jnp.asarray(f(np.float32(angles)))[None, :, :, None] for f in (np.cos, np.sin))
    a, b = q[:, :, None, :, : WIDTH // 2], q[:, :, None, :, WIDTH // 2 :]
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    return jnp.einsum('btsnh,bsnh->bnts', turned, k) / WIDTH**0.5


ROTARY = 'rope(layout="interleaved", partial=0.5, freqs=yarn(factor=2.0, train_len=8))'


def rotary_logits(q, k, distance):
    """`logits` of `ROTARY`, which differs from the default in everything: layout, width,
    frequencies, temperature.
    """
    rotary, length = pj.make(ROTARY, head_dim=WIDTH), q.shape[1]
    at = lambda a, pos: rotary.rotate(a, jnp.asarray(pos, jnp.float32))
    turned = at(jnp.repeat(q, length, axis=1), np.reshape(distance, (1, -1)))
    turned = turned.reshape(1, length, length, *q.shape[2:])
    still = jnp.repeat(at(k, np.zeros((1, length))), q.shape[2] // k.shape[2], axis=2)
    return jnp.einsum('btsnh,bsnh->bnts', turned, still) / WIDTH**0.5


def softmax(s, v):
    """Causal attention with these logits."""
    s = jnp.where(np.tril(np.ones(s.shape[-2:], bool)), s, -jnp.inf)
    v = jnp.repeat(v, s.shape[1] // v.shape[2], axis=2)
    return jnp.einsum('bnts,bsnh->btnh', jax.nn.softmax(s), v)


def defined(q, k, v, distance):
    return softmax(logits(q, k, distance), v)


@jax.jit
def _projected(part, tok, *arrays):
    _, k, _, _, tk = part.project(*arrays, tok, tok)
    return k, tk


@jax.jit
def _step(part, tok, held, n, cached, *arrays):
    """The key of token n, and its query's result over the keys `cached`."""
    new = tok.slice(n, 1)
    q, k, _, tq, _ = part.project(
        *(jax.lax.dynamic_slice_in_dim(a, n, 1, axis=1) for a in arrays), new, new
    )
    return k, pj.attend(part, q, cached, arrays[-1], tq, held, applied=pj.TOKEN_STAGE)


def check_decoding(part, length, steps):
    """New queries over keys, and their features, that were projected once."""
    arrays, tok = qkv(length), pj.Tokens.of(length=length)
    whole = run(part, tok, *arrays)
    cached, tk = _projected(part, tok, *arrays)
    for n in steps:
        held = pj.Tokens.of(valid=tok.index <= n).with_feats(**tk.feats)
        new_k, out = _step(part, tok, held, n, cached, *arrays)
        np.testing.assert_allclose(new_k[:, 0], cached[:, n], atol=1e-6)
        np.testing.assert_allclose(out[:, 0], whole[:, n], atol=1e-6)
