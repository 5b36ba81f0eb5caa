"""Which part of a text its vector resembles, before and after contrastive training.

Data:      English prose in windows of 256 bytes. A pair of texts is two spans of one window, each
           of 32 to 128 bytes from a place that is drawn, so no part of a window is preferred.
Measured:  a drawn encoder (2 layers of width 64 with the T5 bias, the mean of its vectors), and
           the same after training to find the other span of each pair among the spans of a batch.
           The cosine of a text of 128 bytes of the test with each of its eight segments, and the
           share of pairs of the test that are found among 64.
Paper:     Coelho et al. (arXiv 2404.04163): contrastive training makes the vectors of texts
           resemble their beginning, and tuning for search makes them so even more. Their texts
           have up to 2048 tokens and begin with what is most important.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.fitting import fitted
from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.analyse import embedding_position_bias
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.tasks.language import Language
from posenc_jax.layer.layers import pooled
from posenc_jax.protocol.tokens import Tokens

WINDOW, LEAST, MOST, SEGMENTS, AMONG = 256, 32, 128, 8, 64


def spans(rng: np.random.Generator, windows: np.ndarray) -> dict[str, np.ndarray]:
    """Two spans of each window, one below the other, padded on the right."""
    rows = np.concatenate([windows, windows])
    count = rng.integers(LEAST, MOST, len(rows), endpoint=True)
    start = rng.integers(0, WINDOW - count, endpoint=True)
    place = np.arange(MOST)
    valid = place < count[:, None]
    tokens = np.take_along_axis(rows, np.minimum(start[:, None] + place, WINDOW - 1), axis=1)
    return {'tokens': np.where(valid, tokens, 0).astype(np.int32), 'valid': valid}


def scores(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    """Cosines of the first spans of all pairs (rows) and the second ones (columns)."""
    tok = Tokens.of(valid=batch['valid'])
    vectors = pooled(model.hidden(batch['tokens'], tok), tok, 'mean')[:, 0]
    one, other = jnp.split(vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True), 2)
    return one @ other.T


def loss(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    """The contrastive loss of pairs in both directions, at a temperature of 0.05."""
    logits = scores(model, batch) / 0.05
    own = jnp.arange(len(logits))
    both = [
        optax.softmax_cross_entropy_with_integer_labels(s, own).mean() for s in (logits, logits.T)
    ]
    return (both[0] + both[1]) / 2


def measured(seed: int, options: argparse.Namespace) -> Found:
    """The cosines by segment, and the share of pairs that are found, of both models."""
    windows = lambda split, rows: Language().dataset(
        length=WINDOW, batch_size=rows, seed=seed, split=split
    )
    cfg = TransformerConfig(
        vocab_size=Language().vocab_size, train_len=MOST, layers=2, width=64, heads=4,
        kind='encoder', encoding='t5_rpe(bidirectional=True)',
    )  # fmt: skip
    drawn, data = Transformer(cfg, rngs=nnx.Rngs(seed)), windows('train', options.batch)
    rng = np.random.default_rng([seed, 1])
    batches = (spans(rng, data[number]['tokens']) for number in range(options.steps))
    trained = fitted(drawn, loss, batches, steps=options.steps)
    held = windows('test', AMONG)[0]['tokens']
    pairs = spans(np.random.default_rng(0), held)
    for name, model in (('drawn', drawn), ('trained', trained)):
        found = np.asarray(nnx.jit(scores)(model, pairs)).argmax(1) == np.arange(AMONG)
        yield 'pairs that are found', name, AMONG, float(found.mean())
        bias = embedding_position_bias(model, held[:, :MOST], segments=SEGMENTS)
        for place, cosine in enumerate(bias.similarity):
            yield 'cosine of text and segment', name, place, float(cosine)
        yield 'slope, segments in another order', name, 0, bias.shuffled


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured),
    options={'steps': 1500, 'batch': (32, 'pairs')},
    table={'title': 'Vectors of texts', 'x': 'segment', 'value': 'cosine, share, slope'},
)
