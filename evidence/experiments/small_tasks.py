"""Encodings in networks of a few thousand parameters, each on a task that it was made for.

Groups:    pixels     the offset of two of 16 x 16 pixels, by a network that reads an encoding of
                      both: learnable Fourier features, sines and cosines of both axes, a table; in
                      pairs that training leaves out, over the steps
           streams    a signal at the times of one stream from another one of half its length, which
                      is read as a positional encoding, and by cross-attention with and without
                      positions; squared error over the variance
           alignment  copies of texts of three symbols by a GRU with additive attention to the
                      content, with and without sinusoids, and to earlier weights
           letters    whether a letter is more frequent in the first or in the second half of 20
                      letters, or equally, by encoders of two layers
           forms      the kind of the word that is read before each word of a form among its
                      neighbours, by a graph network with the offsets of neighbours, with and
                      without codes of the reading order
Time:      5 to 30 s of processor time a run
"""

import argparse
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.program import Found, Program, each
from posenc_jax.features.coordinates import make_features
from posenc_jax.features.graphs.rope_reading_order import (
    gabriel_graph,
    reading_order_codes,
    reading_order_features,
)
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.methods.sinusoidal import sinusoidal_table
from posenc_jax.mixers.cmc_pe import CrossModalConditioning
from posenc_jax.mixers.encoder_decoder import EncoderDecoder
from posenc_jax.mixers.htr_attention import HTRAttention

BATCH, CHECKS = 64, 8  # rows of a step; how often a run is measured while it is trained
SIDE, REACH, WIDTH = 16, 5, 64  # of the pixels
SAMPLES, RATIO, WAVES = 16, 2, 3  # of the streams
SYMBOLS, SHORTEST, LONGEST = 3, 6, 12  # of the alignment
LETTERS, TEXT = 3, 20
WORDS, KINDS, FORMS = 20, 6, 512
Batch = tuple[jax.Array, ...]


class Network(nnx.Module):
    """Two layers with an activation between them."""

    def __init__(self, before: int, inside: int, behind: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(before, inside, rngs=rngs)
        self.second = nnx.Linear(inside, behind, rngs=rngs)

    def __call__(self, x):
        return self.second(jax.nn.gelu(self.first(x)))


def trained(module, loss, draw, score, steps: int, seed: int, lr: float = 2e-3) -> list[float]:
    """The score of a module CHECKS times while it is trained.

    Args:
      loss: (module, batch, key) -> number.
      draw: key -> batch.
      score: module -> number, on data that training does not see.
    """
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.warmup_cosine_decay_schedule(0.0, lr, steps // 10 + 1, steps + 1)),
    )

    def step(carry, key):
        params, state = carry
        batch, own = draw(jax.random.fold_in(key, 0)), jax.random.fold_in(key, 1)
        gradient = jax.grad(lambda p: loss(nnx.merge(graphdef, p, rest), batch, own))(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    scored = jax.jit(lambda params: score(nnx.merge(graphdef, params, rest)))
    carry, found = (params, optimizer.init(params)), []
    keys = jax.random.split(jax.random.key(seed), (CHECKS, max(steps // CHECKS, 1)))
    for own in keys:
        carry = train(carry, own)
        found.append(float(scored(carry[0])))
    return found


def cross_entropy(logits, classes):
    return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()


def right(logits, classes):
    return (logits.argmax(-1) == classes).mean()


class Pixels(nnx.Module):
    """The class of the offset of two pixels."""

    def __init__(self, encoding: str, rngs: nnx.Rngs):
        sizes = f'components=2, width={WIDTH}, features={WIDTH}, gamma=10.0'
        ours = encoding == 'learnable_fourier'
        self.table = nnx.Embed(SIDE**2, WIDTH, rngs=rngs) if encoding == 'table' else None
        self.features = make_features(f'{encoding}({sizes})', rngs) if ours else None
        self.network = Network(2 * WIDTH, 128, (2 * REACH + 1) ** 2, rngs)

    def __call__(self, places):
        """Places [B, 2, 2]."""
        if self.table is not None:
            code = self.table(places @ jnp.array([SIDE, 1]))
        elif self.features is not None:
            code = self.features.encode(places.astype(jnp.float32))
        else:
            code = sinusoidal_table(places, WIDTH)
        return self.network(code.reshape(len(code), -1))


@functools.cache
def all_pairs(test: bool) -> np.ndarray:
    """Rows, columns and both offsets of all pairs within the picture. A fifth is for the test."""
    steps = np.arange(-REACH, REACH + 1)
    found = np.stack(np.meshgrid(*(np.arange(SIDE),) * 2, steps, steps), -1).reshape(-1, 4)
    other = found[:, :2] + found[:, 2:]
    found = found[((other >= 0) & (other < SIDE)).all(-1)]
    part = np.random.default_rng(0).permutation(len(found)) % 5 == 0
    return found[part == test]


def pairs(key, rows: int, test: bool) -> Batch:
    """Places of two pixels, and the class of their offset."""
    known = jnp.asarray(all_pairs(test))
    place, step = jnp.split(known[jax.random.randint(key, (rows,), 0, len(known))], 2, axis=-1)
    return jnp.stack([place, place + step], 1), (step + REACH) @ jnp.array([2 * REACH + 1, 1])


def pixels(encoding: str, seed: int, steps: int) -> list[float]:
    places, classes = pairs(jax.random.key(1), 2000, True)
    return trained(
        Pixels(encoding, nnx.Rngs(seed)),
        lambda module, batch, key: cross_entropy(module(batch[0]), batch[1]),
        lambda key: pairs(key, 4 * BATCH, False),
        lambda module: right(module(places), classes),
        steps,
        seed,
    )


class Streams(nnx.Module):
    """The signal of a stream at each time, from another stream."""

    def __init__(self, condition: str, rngs: nnx.Rngs):
        self.condition, self.enter = condition, nnx.Linear(8, WIDTH, rngs=rngs)
        self.own = CrossModalConditioning(WIDTH, WIDTH) if condition == 'cmc_pe' else None
        if self.own is None:
            of = functools.partial(nnx.Linear, WIDTH, WIDTH, use_bias=False, rngs=rngs)
            self.q, self.k, self.v = of(), of(), of()
        self.network = Network(WIDTH, WIDTH, 1, rngs)

    def __call__(self, other):
        length = SAMPLES * RATIO
        places = sinusoidal_table(jnp.arange(length)[None], WIDTH)
        own = jnp.broadcast_to(places, (len(other), length, WIDTH))
        keys = other = self.enter(other)
        if self.own is not None:
            return self.network(self.own(own, other)[0])[..., 0]
        if self.condition == 'cross-attention':
            # In the time of the longer stream.
            times = (jnp.arange(SAMPLES) + 0.5) * RATIO - 0.5
            keys = keys + sinusoidal_table(times[None], WIDTH)
        logits = jnp.einsum('btd,bsd->bts', self.q(own), self.k(keys)) / WIDTH**0.5
        read = jnp.einsum('bts,bsd->btd', jax.nn.softmax(logits), self.v(other))
        return self.network(own + read)[..., 0]


def signals(key, rows: int) -> Batch:
    """A drawn sum of three waves among noise, and the same wave at the times of another stream."""
    size, turn, noise = jax.random.split(key, 3)
    sizes = jax.random.normal(size, (rows, 1, WAVES))
    turns = jax.random.uniform(turn, (rows, 1, WAVES))
    at = lambda count: (jnp.arange(count)[:, None] + 0.5) / count
    wave = lambda x: (sizes * jnp.sin(2 * jnp.pi * (x * (jnp.arange(WAVES) + 1) + turns))).sum(-1)
    rest = jax.random.normal(noise, (rows, SAMPLES, 7))
    return jnp.concatenate([wave(at(SAMPLES))[..., None], rest], -1), wave(at(SAMPLES * RATIO))


def streams(condition: str, seed: int, steps: int) -> list[float]:
    test, wanted = signals(jax.random.key(1), 512)
    error = lambda module, batch, key=None: jnp.square(module(batch[0]) - batch[1]).mean()
    return trained(
        Streams(condition, nnx.Rngs(seed)),
        error,
        lambda key: signals(key, BATCH),
        lambda module: error(module, (test, wanted)) / wanted.var(),
        steps,
        seed,
    )


def texts(key, rows: int) -> Batch:
    """Texts of symbols from 2 on, their lengths, and the targets: 1, the text, and 1 at the end."""
    symbol, size = jax.random.split(key)
    text = jax.random.randint(symbol, (rows, LONGEST), 2, 2 + SYMBOLS)
    length = jax.random.randint(size, (rows,), SHORTEST, LONGEST + 1)
    place = jnp.arange(LONGEST + 1)
    filled = jnp.pad(text, ((0, 0), (0, 1)))
    end = jnp.where(place == length[:, None], 1, jnp.where(place < length[:, None], filled, 0))
    start = jnp.ones((rows, 1), end.dtype)
    return end[:, :-1] * (end[:, :-1] > 1), length, jnp.concatenate([start, end], axis=1)


def alignment(variant: str, seed: int, steps: int) -> list[float]:
    kind, positions = variant.split(', ')
    attention = functools.partial(HTRAttention, kind=kind, positions=positions, width_inside=32)
    module = EncoderDecoder(
        2 + SYMBOLS, embedding=16, hidden=32, attention=attention, rate=0.0, rngs=nnx.Rngs(seed)
    )
    source, length, target = texts(jax.random.key(1), 256)

    def loss(module, batch, key):
        source, length, target = batch
        logits, wanted = module(source, length, target[:, :-1], key=key), target[:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        return jnp.where(wanted > 0, losses, 0).sum() / (wanted > 0).sum()

    def copied(module):
        found, wanted = module.generate(source, length, first=1, steps=LONGEST + 1), target[:, 1:]
        return ((found == wanted) | (wanted == 0)).all(-1).mean()

    draw = lambda key: texts(key, BATCH)
    return trained(module, loss, draw, copied, steps, seed, lr=5e-3)


def letters(encoding: str, seed: int, steps: int) -> list[float]:
    pattern = ('cope_complex()', 'nope()') if encoding == 'cope_complex' else (encoding,) * 2
    cfg = TransformerConfig(
        vocab_size=LETTERS, train_len=TEXT, layers=2, width=32, heads=4, kind='encoder',
        encoding='nope()', pattern=pattern, pool='mean', output_size=3,
    )  # fmt: skip

    def draw(key, rows=BATCH):
        text = jax.random.randint(key, (rows, TEXT), 0, LETTERS)
        more = (text[:, : TEXT // 2] == 0).sum(-1) - (text[:, TEXT // 2 :] == 0).sum(-1)
        return text, jnp.sign(more) + 1

    test, classes = draw(jax.random.key(1), 1000)
    return trained(
        Transformer(cfg, rngs=nnx.Rngs(seed)),
        lambda module, batch, key: cross_entropy(module(batch[0])[:, 0], batch[1]),
        draw,
        lambda module: right(module(test)[:, 0], classes),
        steps,
        seed,
    )


class GraphNetwork(nnx.Module):
    """Two layers of messages from neighbours with what is known of each pair."""

    def __init__(self, edge: int, rngs: nnx.Rngs):
        sizes = (KINDS + 2, 32)
        self.messages = nnx.List([Network(size + edge, 32, 32, rngs) for size in sizes])
        self.own = nnx.List([nnx.Linear(size, 32, rngs=rngs) for size in sizes])
        self.out = nnx.Linear(32, KINDS + 1, rngs=rngs)

    def __call__(self, x, near, edges):
        for message, own in zip(self.messages, self.own):
            others = jnp.broadcast_to(x[:, None], (*near.shape, x.shape[-1]))
            sent = message(jnp.concatenate([others, edges], axis=-1)) * near[..., None]
            x = jax.nn.relu(own(x) + sent.sum(2) / near.sum(2)[..., None])
        return self.out(x)


def forms(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Words in two columns of lines: kinds, places, neighbours, codes, and the kind before."""
    places = np.zeros((count, WORDS, 2))
    places[..., 0] = np.arange(WORDS) % 2 * 0.5 + rng.uniform(0, 0.3, (count, WORDS))
    places[..., 1] = np.arange(WORDS) // 2 / (WORDS // 2) + rng.uniform(0, 0.03, (count, WORDS))
    kinds = rng.integers(KINDS, size=(count, WORDS))
    near = np.stack([gabriel_graph(own) | np.eye(WORDS, dtype=bool) for own in places])
    codes = jax.jit(jax.vmap(lambda own: reading_order_codes(jnp.arange(WORDS), own, 'self')))(near)
    # The word with the code -1, or none for a word that is the first of its neighbours.
    before = (np.asarray(codes) == -1) & near
    wanted = np.where(before.any(-1), kinds[np.arange(count)[:, None], before.argmax(-1)], KINDS)
    x = np.concatenate([np.eye(KINDS)[kinds], places], axis=-1)
    return {
        'x': x.astype(np.float32), 'near': near, 'codes': np.asarray(codes), 'wanted': wanted,
        'offsets': (places[:, None] - places[:, :, None]).astype(np.float32),
    }  # fmt: skip


def reading(variant: str, seed: int, steps: int) -> list[float]:
    with_codes = variant == 'codes'

    def inputs(found, rows):
        edges = found['offsets'][rows]
        if with_codes:
            codes = jax.vmap(functools.partial(reading_order_features, width=8))(
                found['codes'][rows]
            )
            edges = jnp.concatenate([edges, codes], axis=-1)
        return found['x'][rows], found['near'][rows], edges, found['wanted'][rows]

    train, test = (
        jax.tree.map(jnp.asarray, forms(np.random.default_rng([seed, part]), FORMS))
        for part in (0, 1)
    )
    *seen, wanted = inputs(test, jnp.arange(128))
    return trained(
        GraphNetwork(10 if with_codes else 2, nnx.Rngs(seed)),
        lambda module, batch, key: cross_entropy(module(*batch[:3]), batch[3]),
        lambda key: inputs(train, jax.random.randint(key, (16,), 0, FORMS)),
        lambda module: right(module(*seen), wanted),
        steps,
        seed,
        lr=5e-3,
    )


Group = tuple[Callable[[str, int, int], list[float]], tuple[str, ...], int]  # with usual steps
GROUPS: Mapping[str, Group] = {
    'pixels': (pixels, ('learnable_fourier', 'sinusoidal', 'table'), 1200),
    'streams': (streams, ('cmc_pe', 'cross-attention', 'cross-attention without positions'), 800),
    'alignment': (
        alignment, ('content, none', 'content, sinusoid', 'location, none', 'location, sinusoid'),
        1200,
    ),
    'letters': (
        letters, ('cope_complex', 'rope()', 'sinusoidal()', f'learned_absolute(max_len={TEXT})'),
        400,
    ),
    'forms': (reading, ('codes', 'offsets alone'), 400),
}  # fmt: skip


def measured(group: str, seed: int, options: argparse.Namespace) -> Found:
    """The curves of all variants of a group."""
    run, variants, usual = GROUPS[group]
    for name in variants:
        for check, value in enumerate(run(name, seed, options.steps or usual), 1):
            yield group, name, check, value


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'groups'),
    choose={'groups': GROUPS},
    options={'steps': (0, 'by default those of the group')},
    table={'title': 'Small tasks', 'x': 'eighths of the training', 'value': 'value'},
)
