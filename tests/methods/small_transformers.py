"""Small models with an encoding: read at once, read token by token, and trained."""

import jax
import numpy as np
import optax
from flax import nnx

from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from tests.small_models import small_model

SIZES = dict(vocab_size=11, train_len=8, layers=2, width=16, heads=2)


def model_of(encoding, seed=0, **fields):
    """A model of two layers; `fields` are those of `TransformerConfig`."""
    return small_model(seed, **{**SIZES, 'encoding': encoding, **fields})


read = jax.jit(lambda model, *text: model(*text))
_prefill, _step = jax.jit(prefill), jax.jit(decode_step)


def token_by_token(model, tokens, tok, prompt=3, source=None):
    """Logits [B, T, V] of a text of which the first `prompt` tokens are read at once and the others
    one after the other; and the cache behind it.
    """
    logits, cache = _prefill(model, init_cache(model, tok, source), tokens[:, :prompt])
    out = [logits]
    for t in range(prompt, tokens.shape[1]):
        logits, cache = _step(model, cache, tokens[:, t])
        out.append(logits[:, None])
    return np.concatenate(out, axis=1), cache


def descend(loss, params, steps, rate):
    """The parameters after steps of Adam, and the loss `loss(params, key)` in front of each."""
    optimizer = optax.adam(rate)

    def step(carry, key):
        params, state = carry
        value, slope = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def run(params):
        keys = jax.random.split(jax.random.key(3), steps)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)

    (params, _), losses = run(params)
    return params, losses


def turned_off(variable):
    """Sets a variable to zero."""
    variable[...] = 0 * variable[...]


def moved(module, scale=0.3, seed=0):
    """The module, with random numbers added to its parameters, some of which start at zero."""
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)
    leaves = jax.tree.leaves(nnx.state(module, nnx.Param), is_leaf=is_variable)
    for number, leaf in enumerate(leaves):
        draw = np.random.default_rng(seed + number).standard_normal(leaf.shape, np.float32)
        leaf[...] = leaf[...] + scale * draw
    return module
