"""Which nodes of a graph are in the community of a marked one, by features of nodes.

Data:      random graphs of 24 nodes in two communities of 12, with edges of a probability of .5
           within and of .15 between them. One node is marked.
Measured:  nodes of 1024 graphs that training does not show, of which a graph network (`gin`, three
           layers of width 32) tells whether they are in the community of the marked one. It reads
           the edges, the mark and features of the nodes: propagated random features (`rfp`), the
           same features without propagation, eigenvectors (`lap_pe`), the probabilities that random
           walks return (`rwse`), or none. What is random, signs of eigenvectors included, is drawn
           four times for each graph of training, and once for those of the test.
Paper:     Eliasof et al. (arXiv 2303.02918): propagated random features are better than random
           ones and than eigenvectors in the classification of nodes and of graphs.
"""

import argparse
import functools

import jax
import numpy as np
import optax
from flax import nnx

from evidence.experiments.fitting import fitted
from evidence.experiments.program import Found, Program, each
from posenc_jax.features.graphs import make_graph_features
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.model.inputs import inputs_of, tokens_of

NODES, INSIDE, BETWEEN = 24, 0.5, 0.15
POOL, TESTED, ROWS, DRAWS = 4096, 1024, 32, 4
FEATURES = {
    'none': '',
    'lap_pe': 'lap_pe(vectors=8)',
    'rwse': 'rwse(steps=8)',
    'random': 'rfp(features=8, steps=0, normalise="none")',
    'rfp': 'rfp(features=8, steps=8)',
}
Batch = dict[str, np.ndarray]


@functools.cache
def graphs(part: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Adjacencies of the graphs of training (0) or of the test (1), and which nodes are in the
    community of the first one, which is marked.
    """
    rng = np.random.default_rng(part)
    group = rng.permuted(np.tile(np.arange(NODES) % 2, (count, 1)), axis=1)
    same = group[:, :, None] == group[:, None]
    drawn = np.triu(rng.random(same.shape) < np.where(same, INSIDE, BETWEEN), 1)
    return drawn | drawn.swapaxes(1, 2), same[:, 0]


@functools.cache
def features(part: int, count: int, spec: str, draws: int) -> np.ndarray:
    """Features [draws, count, NODES, F]."""
    adjacency, _ = graphs(part, count)
    if not spec:
        return np.zeros((draws, count, NODES, 0), np.float32)
    encoder, rng = make_graph_features(spec), np.random.default_rng([part, 1])
    drawn = [[encoder.encode(own, rng) for own in adjacency] for _ in range(draws)]
    return np.array(drawn, np.float32)


def batch(part: int, count: int, chosen: np.ndarray, found: np.ndarray) -> Batch:
    """Graphs with a 1, the mark and their features [graphs, NODES, F] at every node."""
    adjacency, same = graphs(part, count)
    marks = np.stack([np.ones(NODES), np.arange(NODES) == 0], axis=1)
    marks = np.broadcast_to(marks, (len(chosen), NODES, 2))
    return {
        'vectors': np.concatenate([marks, found], axis=-1).astype(np.float32),
        'adjacency': adjacency[chosen].astype(np.float32),
        'same': same[chosen].astype(np.int32),
    }


def logits(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    """Those of all nodes but the marked one."""
    return model(inputs_of(batch), tokens_of(batch))[:, 1:]


def loss(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    nats = optax.softmax_cross_entropy_with_integer_labels
    return nats(logits(model, batch), batch['same'][:, 1:]).mean()


def measured(name: str, seed: int, options: argparse.Namespace) -> Found:
    """The share of nodes that a trained network tells."""
    steps, spec = options.steps, FEATURES[name]
    train, test = features(0, POOL, spec, DRAWS), features(1, TESTED, spec, 1)
    mean, std = train.mean((0, 1, 2)), np.maximum(train.std((0, 1, 2)), 1e-6)
    train, test = (train - mean) / std, (test - mean) / std
    cfg = TransformerConfig(
        vocab_size=0, channels=2 + train.shape[-1], output_size=2, train_len=NODES, layers=3,
        width=32, heads=4, kind='encoder', encoding='gin()',
    )  # fmt: skip
    rng = np.random.default_rng([seed, 1])

    def drawn() -> Batch:
        chosen = rng.integers(0, POOL, ROWS)
        return batch(0, POOL, chosen, train[rng.integers(0, DRAWS, ROWS), chosen])

    batches = (drawn() for _ in range(steps))
    start = Transformer(cfg, rngs=nnx.Rngs(seed))
    model = fitted(start, loss, batches, steps=steps, rate=options.rate)
    asked = batch(1, TESTED, np.arange(TESTED), test[0])
    found = np.asarray(nnx.jit(logits)(model, asked)).argmax(-1)
    yield 'communities', name, NODES, float((found == asked['same'][:, 1:]).mean())


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'features'),
    choose={'features': FEATURES},
    options={'steps': 4000, 'rate': 3e-3},
    table={'title': 'Communities', 'x': 'nodes', 'value': 'told'},
)
