"""The distance of two marked nodes of a random graph, by encoders with encodings of the graph.

Data:      connected graphs of 10 to 16 nodes: a random tree and a quarter as many edges more as it
           has nodes. Two nodes are marked, at a distance of 1 to 6. All distances that a graph has
           are equally likely.
Measured:  graphs in which an encoder of two layers of width 32 tells the distance, and those in
           which it tells whether that is even, of graphs that training does not show. It reads
           marks, and the graph by its encoding alone: a bias of distances (`graphormer_spatial`), a
           bias of the probabilities of random walks (`rrwp`), the probabilities that a walk returns
           to a node (`rwse`), eigenvectors (`lap_pe`), or nothing.
Paper:     Ying et al. (arXiv 2106.05234): a bias of distances is better than encodings by random
           walks and by eigenvectors. Ma et al. (arXiv 2305.17589): probabilities of walks of pairs
           are more powerful than distances.
"""

import argparse
import functools
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from evidence.experiments.fitting import fitted
from evidence.experiments.program import Found, Program, each
from posenc_jax.features.graphs import make_graph_features
from posenc_jax.features.graphs.encoder import PAIRS
from posenc_jax.features.graphs.graphormer import graphormer_shortest_paths
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.tasks.graphs.padded import pad_nodes, pad_pairs
from posenc_jax.protocol.tokens import Tokens

FEWEST, MOST, FARTHEST = 10, 16, 6
POOL, TESTED, ROWS = 8192, 1024, 64
# Features of the nodes and of their pairs, and what attention does with them.
ENCODINGS = {
    'graphormer_spatial': ('graphormer_spatial()', 'graphormer_spatial(distances=16)'),
    'rrwp': ('rrwp(steps=8)', 'rrwp(steps=8, hidden=16)'),
    'rwse': ('rwse(steps=8)', 'nope()'),
    'lap_pe': ('lap_pe(vectors=8)', 'nope()'),
}


def graph(rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """A graph whose first two nodes are the marked ones, and their distance."""
    count = int(rng.integers(FEWEST, MOST, endpoint=True))
    joined = np.zeros((count, count), bool)
    for node in range(1, count):
        joined[node, rng.integers(node)] = True
    for _ in range(count // 4):
        joined[tuple(rng.choice(count, 2, replace=False))] = True
    joined |= joined.T
    apart = graphormer_shortest_paths(joined)[0]
    distance = int(rng.integers(1, min(FARTHEST, int(apart.max())), endpoint=True))
    pairs = np.argwhere(apart == distance)
    marked = pairs[rng.integers(len(pairs))]
    others = rng.permutation(np.setdiff1d(np.arange(count), marked))
    order = np.concatenate([marked, others])
    return joined[np.ix_(order, order)], distance


@functools.cache
def graphs(part: int, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The graphs of training (0) or of the test (1), and the distances of their marked nodes."""
    rng = np.random.default_rng(part)
    drawn, distances = zip(*(graph(rng) for _ in range(count)))
    return list(drawn), np.array(distances)


@functools.cache
def arrays(part: int, count: int, features: str) -> dict[str, np.ndarray]:
    """Vectors with the marks and the features of nodes, features of pairs, which nodes are real,
    and the distances.
    """
    drawn, distances = graphs(part, count)
    encoder = make_graph_features(features)
    vectors, pairs = [], []
    for own in drawn:
        marks = np.stack([np.ones(len(own)), np.arange(len(own)) < 2], axis=1)
        vectors.append(np.concatenate([marks, encoder.encode(own)], axis=1).astype(np.float32))
        pairs.append(encoder.pairs(own))
    return {
        'vectors': pad_nodes(vectors, MOST), **pad_pairs(pairs, MOST),
        'valid': pad_nodes([np.ones(len(own), bool) for own in drawn], MOST),
        'distance': distances,
    }  # fmt: skip


def standardised(arrays: dict[str, np.ndarray], like: dict[str, np.ndarray]) -> dict[str, Any]:
    """The arrays with features of nodes that have the mean 0 and the deviation 1 in `like`."""
    known = like['vectors'][like['valid']][:, 2:]
    scaled = (arrays['vectors'][..., 2:] - known.mean(0)) / np.maximum(known.std(0), 1e-6)
    marks = arrays['vectors'][..., :2]
    vectors = np.concatenate([marks, scaled], axis=-1) * arrays['valid'][..., None]
    return {**arrays, 'vectors': vectors}


def signed(rng: np.random.Generator, vectors: np.ndarray) -> np.ndarray:
    """Vectors whose features of nodes have random signs in each graph, those of eigenvectors."""
    signs = rng.choice([-1.0, 1.0], (len(vectors), 1, vectors.shape[2] - 2))
    return np.concatenate([vectors[..., :2], vectors[..., 2:] * signs], axis=-1)


def logits(model: Transformer, batch: dict[str, Any]) -> jax.Array:
    """The logits of the first marked node: of all distances, and of an odd and an even one."""
    tok = Tokens.of(length=MOST, valid=batch['valid'])
    pairs = {name: own[:, :, None] for name, own in batch.items() if name.startswith(PAIRS)}
    return model(batch['vectors'], tok.with_feats(**pairs))[:, 0]


def loss(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    """Nats of both answers."""
    nats = optax.softmax_cross_entropy_with_integer_labels
    found, distance = logits(model, batch), batch['distance']
    of_distance = nats(found[:, :FARTHEST], distance - 1)
    return (of_distance + nats(found[:, FARTHEST:], 1 - distance % 2)).mean()


def measured(encoding: str, seed: int, options: argparse.Namespace) -> Found:
    """The shares of distances, and of even and odd ones, that a trained model tells."""
    steps = options.steps
    features, spec = ENCODINGS[encoding]
    train, test = arrays(0, POOL, features), arrays(1, TESTED, features)
    flips = encoding == 'lap_pe'
    if not flips:
        train, test = standardised(train, train), standardised(test, train)
    cfg = TransformerConfig(
        vocab_size=0, channels=train['vectors'].shape[2], output_size=FARTHEST + 2, train_len=MOST,
        layers=2, width=32, heads=4, kind='encoder', encoding=spec,
    )  # fmt: skip
    rng = np.random.default_rng([seed, 1])

    def batch():
        chosen = rng.integers(0, POOL, ROWS)
        own = {name: array[chosen] for name, array in train.items()}
        return {**own, 'vectors': signed(rng, own['vectors'])} if flips else own

    batches = (batch() for _ in range(steps))
    start = Transformer(cfg, rngs=nnx.Rngs(seed))
    model = fitted(start, loss, batches, steps=steps, rate=options.rate)
    found = np.asarray(nnx.jit(logits)(model, test))
    right = found[:, :FARTHEST].argmax(-1) == test['distance'] - 1
    even = found[:, FARTHEST:].argmax(-1) == 1 - test['distance'] % 2
    yield 'distances', encoding, MOST, float(right.mean())
    yield 'even distances', encoding, MOST, float(even.mean())


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'encodings'),
    choose={'encodings': ENCODINGS},
    options={'steps': 1500, 'rate': 3e-3},
    table={'title': 'Marked nodes', 'x': 'nodes', 'value': 'told'},
)
