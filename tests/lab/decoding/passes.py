"""Small models, compiled passes through them and their caches, and what these are compared with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.lab.decoding.contexts import with_contexts
from posenc_jax.lab.decoding.decode import decode_step, prefill
from posenc_jax.lab.decoding.read_contexts import read
from posenc_jax.layer.sharded_attend import sharded_attend
from tests.small_models import kept_model

BASE = dict(vocab_size=13, train_len=16, layers=2, width=16, heads=4, kv_heads=2, encoding='rope()')
model_of = functools.partial(kept_model, **BASE)
# Compiled, since one by one their operations take longer.
step, prompt = jax.jit(decode_step), jax.jit(prefill)
one_pass = jax.jit(lambda model, text, tok=None: model(text, tok))


def stepped(model, cache, tokens, step=step):
    """Logits [B, T, V] of tokens that go through a cache one by one, and the cache."""
    rows = []
    for token in jnp.asarray(tokens).T:
        logits, cache = step(model, cache, token)
        rows.append(np.asarray(logits))
    return np.stack(rows, axis=1), cache


def answers(reader, cache, query, steps=0):
    """Logits of a query that is read at once, but for its last tokens, which are stepped."""
    first = query.shape[1] - steps
    logits, cache = read(reader, cache, query[:, :first])
    if not steps:
        return np.asarray(logits)
    return np.concatenate([logits, stepped(reader, cache, query[:, first:])[0]], axis=1)


def dense(model, segments, query, layout, attention_fn=sharded_attend):
    """Logits of a query from one pass over prefix, contexts and query, with the positions and the
    mask of `layout`.
    """
    tokens = np.concatenate([*segments, query], axis=1)
    reader = with_contexts(model, layout.sees, attention_fn)
    logits = reader(jnp.asarray(tokens), layout.tokens(query.shape[1]))
    return np.asarray(logits)[:, -query.shape[1] :]


def lengths_of(contexts):
    return [tokens.shape[1] for tokens in contexts]


def slots_of(pieces):
    """How many slots pieces take in a cache."""
    return sum(piece.length for piece in pieces)
