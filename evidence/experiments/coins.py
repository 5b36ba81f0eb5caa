"""Coin flips: how far the predictions of small models are from a martingale and from Bayes.

Data:      sequences of 64 flips of coins whose bias is uniform. Decoders of two layers learn the
           next flip, without positions, with RoPE, with learned positions and with ALiBi.
Measured:  by n, the flips that were read: the gap, which is the distance of the mean of the next
           prediction from this one; the standard deviation of the prediction over orders of the
           flips; and the excess, the divergence from Laplace's rule over its mean entropy.
Time:      40 s of processor time a run
Paper:     Chlon et al. (arXiv 2507.11768): positions violate the martingale property in the order
           of log n / n; 99 % of the limit of entropy after 20 flips.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.analyse.martingale_gap import martingale_gap
from posenc_jax.lab.model import Transformer, TransformerConfig

LENGTH, BATCH = 64, 32
COUNTS = (4, 8, 16, 20, 32, 63)
COINS = 256
ENCODINGS = {
    'nope': 'nope()',
    'rope': 'rope()',
    'learned': f'learned_absolute(max_len={LENGTH})',
    'alibi': 'alibi()',
}


def flips(key, rows: int) -> jax.Array:
    """Rows of LENGTH + 1 flips, each of a coin of its own."""
    coin, flip = jax.random.split(key)
    bias = jax.random.uniform(coin, (rows, 1))
    return (jax.random.uniform(flip, (rows, LENGTH + 1)) < bias).astype(jnp.int32)


def trained(encoding: str, seed: int, steps: int) -> Transformer:
    """A decoder that has learned to predict flips."""
    cfg = TransformerConfig(
        vocab_size=2, train_len=LENGTH, layers=2, width=32, heads=4, encoding=encoding
    )
    graphdef, params, rest = nnx.split(Transformer(cfg, rngs=nnx.Rngs(seed)), nnx.Param, ...)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, min(100, steps // 2), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    def step(carry, key):
        params, state = carry
        rows = flips(key, BATCH)

        def loss(params):
            logits = nnx.merge(graphdef, params, rest)(rows[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(seed), steps)
    train = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    params, _ = train((params, optimizer.init(params)), keys)
    return nnx.merge(graphdef, params, rest)


def entropy(count: int) -> float:
    """The mean entropy of Laplace's rule after so many flips; every number of ones is as likely."""
    p = (np.arange(count + 1) + 1) / (count + 2)
    return float(-(p * np.log(p) + (1 - p) * np.log(1 - p)).mean())


def measured(name: str, seed: int, options: argparse.Namespace) -> Found:
    """What is measured of one model, by the number of flips."""
    model = trained(ENCODINGS[name], seed, options.steps)
    found = martingale_gap(model, (0, 1), counts=COUNTS, sequences=COINS, seed=seed, batch=COINS)
    excess = [risk / entropy(count) for risk, count in zip(found.risk, COUNTS)]
    for panel, values in (('gap', found.gap), ('spread', found.spread), ('excess', excess)):
        for count, value in zip(COUNTS, values):
            yield panel, name, count, float(value)


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'encodings'),
    choose={'encodings': ENCODINGS},
    options={'steps': 1500},
    table={'title': 'Coin flips', 'x': 'flips read', 'value': 'value', 'log': True},
)
