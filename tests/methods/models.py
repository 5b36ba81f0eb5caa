"""Small models with an encoding: read at once, read token by token, and trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from tests.small_models import small_model

SIZES = dict(vocab_size=11, train_len=8, layers=2, width=16, heads=2)
read = jax.jit(lambda model, *text: model(*text))
read_prompt, step = jax.jit(prefill), jax.jit(decode_step)


def model_of(encoding, seed=0, **fields):
    """A model of two layers; `fields` are those of `TransformerConfig`."""
    return small_model(seed, **SIZES | fields, encoding=encoding)


def text(rows, length, seed=1):
    """Ids [rows, length] of words that every model of `SIZES` has."""
    ids = np.random.default_rng(seed).integers(SIZES['vocab_size'], size=(rows, length))
    return jnp.asarray(ids, jnp.int32)


def token_by_token(model, ids, tok=None, prompt=3, source=None):
    """Logits [B, T, V] of a text of which the first `prompt` tokens are read at once and the others
    one after the other; and the cache behind it. The tokens are one text if they are not given.
    """
    tok = pj.Tokens.of(length=ids.shape[1]) if tok is None else tok
    first, cache = read_prompt(model, init_cache(model, tok, source), ids[:, :prompt])
    rows = [first]
    for t in range(prompt, ids.shape[1]):
        logits, cache = step(model, cache, ids[:, t])
        rows.append(logits[:, None])
    return np.concatenate(rows, axis=1), cache


def decoded(model, ids, prompt, tok=None):
    """The logits of `token_by_token`."""
    return token_by_token(model, ids, tok, prompt)[0]


def descend(loss, params, steps, rate):
    """The parameters after steps of Adam, and the loss `loss(params, key)` in front of each."""
    optimizer = optax.adam(rate)

    def update(carry, key):
        params, state = carry
        value, slope = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def run(params):
        keys = jax.random.split(jax.random.key(3), steps)
        return jax.lax.scan(update, (params, optimizer.init(params)), keys)

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
