"""Claims that need a construction, a count or a few seconds of training, and no run of `train.py`.

Time:      about a minute on two CPU cores
Groups:    trees   the share of modules of the standard library whose syntax tree comes back from
                   its flat sequence; a seed is a sample of 40 modules
           fire    the largest error of FIRE with knots at all distances, against drawn tables of
                   T5, slopes of ALiBi and kernels of KERPLE, over the range of the bias
           decay   the share of distances at which the largest logit of a query and a key can lie
                   with RoPE, of heads of 64 drawn components
           bound   how many times smaller the bound of interpolation is than that of extrapolation,
                   in heads of 128 components, at distances of the second, third and fourth octave
                   behind 2048 (seeds 0, 1, 2)
           index   the share of 32 equal tokens without a mask that learn their own index, with URPE
                   and with the biases of T5
"""

import argparse
import ast
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import posenc_jax as pj
from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.analyse.pi_bound import extrapolation_bound, interpolation_constant
from posenc_jax.lab.tasks.language.ast_flatten import ast_flatten, ast_unflatten
from posenc_jax.lab.tasks.language.embedded import stdlib_code
from posenc_jax.methods.fire import fire_progress
from posenc_jax.methods.rope import rope_frequencies

Numbers = Iterator[tuple[str, float]]  # a variant and its number
MODULES = 40
DISTANCES, WINDOW = 128, 2048
TOKENS, STEPS = 32, 400


def trees(seed: int) -> Numbers:
    sources = list(stdlib_code().values())
    chosen = np.random.default_rng(seed).permutation(len(sources))[:MODULES]
    back = [
        ast.dump(ast_unflatten(ast_flatten(sources[i]))) == ast.dump(ast.parse(sources[i]))
        for i in chosen
    ]
    yield 'ast_flatten', float(np.mean(back))


def fire(seed: int) -> Numbers:
    rngs, pos = nnx.Rngs(seed), np.arange(DISTANCES, dtype=np.int32)[None]
    ours = pj.make(f'fire(width={DISTANCES - 1}, threshold={DISTANCES})', heads=4, rngs=rngs)
    z = fire_progress(ours.c[...], ours.mult[...] * DISTANCES, pos, pos)[0, -1, ::-1]
    z = np.asarray(z, np.float64)  # by distance
    for spec in ('t5_rpe', 'alibi', 'kerple'):
        other = pj.make(f'{spec}()', heads=4, head_dim=8, rngs=rngs)
        graphdef, params = nnx.split(other)
        drawn = lambda a: a * jnp.exp(jax.random.normal(rngs.params(), a.shape))
        expected = np.asarray(nnx.merge(graphdef, jax.tree.map(drawn, params)).bias(pos, pos))
        by_distance = expected[..., -1, ::-1].reshape(-1, DISTANCES)[-4:].astype(np.float64)
        slopes = np.diff(by_distance, axis=-1) / np.diff(z)
        ours.w1[...] = jnp.stack([jnp.ones(DISTANCES - 1), -jnp.asarray(z[:-1], jnp.float32)])
        ours.w2[...] = jnp.asarray(np.diff(slopes, prepend=0, axis=-1).T, jnp.float32)
        found = np.asarray(ours.bias(pos, pos))[..., -1, ::-1].reshape(-1, DISTANCES)
        error = np.abs(found - (by_distance - by_distance[:, :1])).max()
        yield spec, float(error / np.ptp(by_distance))


def decay(seed: int) -> Numbers:
    rng, theta = np.random.default_rng(seed), rope_frequencies(64, 10000.0)
    query = rng.standard_normal(32) + 1j * rng.standard_normal(32)
    distance = np.arange(WINDOW)
    turns = np.exp(1j * np.outer(distance, theta))
    # A key at distance r is the query turned by r, so that their product is largest there.
    logits = ((np.abs(query) ** 2) * np.conj(turns[:, None]) * turns[None]).real.sum(-1)
    yield 'rope', float((logits.argmax(axis=1) == distance).mean())


def bound(seed: int) -> Numbers:
    theta, first = rope_frequencies(128, 10000.0), WINDOW * 2**seed
    outside = 2 * 128 * extrapolation_bound(np.arange(first, 2 * first), theta).min()
    yield 'pi', float(outside / (interpolation_constant(theta) / 4))


def index(seed: int) -> Numbers:
    for spec in ("urpe(table='toeplitz')", 't5_rpe(bidirectional=True)'):
        yield spec.split('(')[0], _own_index(spec, seed)


def _own_index(spec: str, seed: int) -> float:
    """The share of equal tokens whose index a layer of attention and a linear map tell."""
    rngs = nnx.Rngs(seed)
    layer = pj.Attention(spec, width=32, heads=4, train_len=TOKENS, rngs=rngs)
    head = nnx.Linear(32, TOKENS, rngs=rngs)
    x = jnp.broadcast_to(jax.random.normal(rngs.params(), (32,)), (1, TOKENS, 32))
    graphdef, params, rest = nnx.split((layer, head), nnx.Param, ...)
    optimizer = optax.adam(1e-2)

    def logits(params):
        layer, head = nnx.merge(graphdef, params, rest)
        return head(layer(x))[0]

    def step(carry, _):
        params, state = carry
        loss = lambda params: optax.softmax_cross_entropy_with_integer_labels(
            logits(params), jnp.arange(TOKENS)
        ).mean()
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(lambda carry: jax.lax.scan(step, carry, length=STEPS)[0])
    params, _ = train((params, optimizer.init(params)))
    return float((logits(params).argmax(-1) == jnp.arange(TOKENS)).mean())


GROUPS: dict[str, Callable[[int], Numbers]] = {
    'trees': trees, 'fire': fire, 'decay': decay, 'bound': bound, 'index': index,
}  # fmt: skip


def measured(group: str, seed: int, options: argparse.Namespace) -> Found:
    """The numbers of a group."""
    del options
    return ((group, name, 0, value) for name, value in GROUPS[group](seed))


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'groups'),
    choose={'groups': GROUPS},
    table={'title': 'Without training', 'x': 'place', 'value': 'value'},
)
