"""Clouds of points that are moved as a whole behind training, read by what knows their places.

Setting:   A cloud has eight points in a cube around 0, of which two are marked. The class is the
           octant in which the second marked point lies as seen from the first, one of eight. Two
           layers of width 48 read what a point is, and where it is by the encoding alone. Each
           encoding has the better of two rates on clouds that are not tested.
Measured:  the share of 2000 clouds that are right, and the share that is no longer right where each
           cloud is moved by up to 1 along each axis
Time:      four minutes of processor time for three seeds
Number:    docs/claims.md, claim FG6
Paper:     Ke et al. (arXiv 2402.10885): 3-D RoPE depends on differences of places alone.
"""

import argparse
import functools

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Bool, Float

from evidence.experiments.fitting import fitted
from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.protocol.tokens import Tokens

POINTS, KINDS = 8, 5  # the first two kinds are marked, and occur once
BATCH, TESTED = 64, 2000
RATES = (1e-3, 3e-3)
ENCODINGS = {
    'rope_3d': 'rope_3d(base=100.0, scale=1.5)',
    'learnable_fourier': 'learnable_fourier(components=3, gamma=1.0)',
}
Batch = dict[str, np.ndarray]


def clouds(rng: np.random.Generator, count: int) -> Batch:
    """Clouds around 0: the kinds of points, one number each, their places, and classes."""
    places = rng.uniform(-1, 1, (count, POINTS, 3))
    places -= places.mean(axis=1, keepdims=True)
    kinds = rng.integers(2, KINDS, (count, POINTS))
    kinds[:, :2] = (0, 1)
    octant = (places[:, 1] > places[:, 0]) @ np.array([4, 2, 1])
    vectors = np.eye(KINDS, dtype=np.float32)[kinds]
    return {'vectors': vectors, 'places': places.astype(np.float32), 'classes': octant}


def read(model: Transformer, batch: Batch) -> jax.Array:
    """Logits of the classes."""
    return model(batch['vectors'], Tokens.of(positions=batch['places']))[:, 0]


def loss(model: Transformer, batch: Batch) -> jax.Array:
    """Cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(
        read(model, batch), batch['classes']
    ).mean()


@nnx.jit
def _classes(model, vectors, places):
    return read(model, {'vectors': vectors, 'places': places}).argmax(-1)


def right(model: Transformer, batch: Batch) -> Bool[np.ndarray, ' B']:
    """Which clouds are right."""
    return np.asarray(_classes(model, batch['vectors'], batch['places'])) == batch['classes']


def moved(rng: np.random.Generator, batch: Batch) -> Batch:
    """The same clouds, each at another place."""
    by: Float[np.ndarray, 'B 1 3'] = rng.uniform(-1, 1, (len(batch['places']), 1, 3))
    return {**batch, 'places': (batch['places'] + by).astype(np.float32)}


def measured(encoding: str, seed: int, options: argparse.Namespace) -> Found:
    """What an encoding has right, and what it loses."""
    cfg = TransformerConfig(
        vocab_size=0, channels=KINDS, train_len=POINTS, layers=2, width=48, heads=4,
        kind='encoder', output_size=8, pool='mean', encoding=ENCODINGS[encoding],
    )  # fmt: skip
    draw = functools.partial(clouds, count=BATCH)
    chosen, tested = (clouds(np.random.default_rng((seed, n)), TESTED) for n in (1, 2))

    def trained(rate):
        rng = np.random.default_rng(seed)
        batches = (draw(rng) for _ in range(options.steps))
        model = Transformer(cfg, rngs=nnx.Rngs(seed))
        return fitted(model, loss, batches, steps=options.steps, rate=rate)

    models = {rate: trained(rate) for rate in RATES}
    rate = max(RATES, key=lambda rate: right(models[rate], chosen).mean())
    before = right(models[rate], tested)
    after = right(models[rate], moved(np.random.default_rng((seed, 3)), tested))
    yield 'right', encoding, rate, float(before.mean())
    yield 'right, moved', encoding, rate, float(after.mean())
    yield 'lost', encoding, 0, float((before & ~after).mean())


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'encodings'),
    choose={'encodings': ENCODINGS},
    options={'steps': (1000, 'batches of training')},
    table={'title': 'Clouds', 'x': 'rate', 'value': 'share of clouds'},
)
