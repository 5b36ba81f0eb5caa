"""Decoding behind a long text that nobody has read: what is timed of a cache."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from posenc_jax.lab.decoding.decode import init_cache
from posenc_jax.lab.model import Transformer
from posenc_jax.layer.cache import Cache
from posenc_jax.protocol.tokens import Tokens

NEW = 16  # tokens that are decoded


def behind(model: Transformer, length: int, start, cut=lambda cache: cache, seed: int = 0) -> Cache:
    """The cache of drawn keys and values behind a text of `length` tokens, after `cut`.

    Args:
      start: (model, empty cache, prompt) -> logits and cache.
    """
    empty = init_cache(model, Tokens.of(length=length + NEW))
    cache = start(model, empty, jnp.zeros((1, 1), jnp.int32))[1]
    leaves, structure = jax.tree.flatten(cache.layers)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    full = [
        jax.random.normal(key, leaf.shape, leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else leaf
        for key, leaf in zip(keys, leaves)
    ]
    layers = jax.tree.unflatten(structure, full)
    return cut(dataclasses.replace(cache, layers=layers, cursor=jnp.asarray(length, jnp.int32)))


def decoder(model: Transformer, cache: Cache, step) -> Callable:
    """A call that decodes NEW tokens behind a cache of one row."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, layers, tokens, cursor):
        model = nnx.merge(graphdef, state)
        blocks = model.layers()
        # A row is carried without its batch axis, as in `generate`: keys are written in place.
        first, whole = (lambda a: a[0]), (lambda a: a[None])

        def one(loop, _):
            layers, cursor, token = loop
            now = dataclasses.replace(
                cache, tokens=tokens, cursor=cursor, layers=jax.tree.map(whole, layers)
            )
            logits, grown = step(model, now, token, layers=blocks)
            token = logits.argmax(-1).astype(jnp.int32)
            return (jax.tree.map(first, grown.layers), grown.cursor, token), token

        begin = jax.tree.map(first, layers), cursor, jnp.zeros(1, jnp.int32)
        return jax.lax.scan(one, begin, None, length=NEW)[1]

    return functools.partial(run, state, cache.layers, cache.tokens, cache.cursor)
