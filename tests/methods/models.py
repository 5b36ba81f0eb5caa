"""Small models of one encoding, for the tests of methods: a pass over a text, and its decoding."""

import jax
import jax.numpy as jnp
import numpy as np

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from tests.small_models import small_model

SIZES = dict(vocab_size=11, train_len=8, layers=2, width=16, heads=2)
read = jax.jit(lambda model, ids, *tok: model(ids, *tok))
read_prompt, step = jax.jit(prefill), jax.jit(decode_step)


def model_of(encoding, **fields):
    return small_model(**SIZES | fields, encoding=encoding)


def text(rows, length, seed=1):
    """Ids [rows, length] of words that every model of `SIZES` has."""
    ids = np.random.default_rng(seed).integers(SIZES['vocab_size'], size=(rows, length))
    return jnp.asarray(ids, jnp.int32)


def decoded(model, ids, prompt, tok=None):
    """The logits of every token: those of the prompt at once, the others through the cache."""
    tok = pj.Tokens.of(length=ids.shape[1]) if tok is None else tok
    first, cache = read_prompt(model, init_cache(model, tok), ids[:, :prompt])
    rows = [first]
    for t in range(prompt, ids.shape[1]):
        logits, cache = step(model, cache, ids[:, t])
        rows.append(logits[:, None])
    return np.concatenate(rows, axis=1)
