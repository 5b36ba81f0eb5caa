"""Masked bases of motifs in RNA-like sequences: symmetric ALiBi and other positions.

Data:      sequences of the four bases, with motifs at random places: eight motifs of 10 bases are
           drawn once for all, and 0 to 4 bases that are drawn uniformly lie between two of them. An
           eighth of the bases is masked, and the loss is that of the masked ones. A base of a motif
           can be told from those beside it.
Measured:  masked bases of motifs that an encoder of 3 layers of width 64 tells, at the trained 64
           bases, at 128 and at 256, with symmetric ALiBi, RoPE and a learned table (of 256 rows, of
           which training reaches 64), after 5000 batches at two rates
Paper:     Ren et al. (arXiv 2406.10391): over 13 RNA tasks ALiBi is better than learned and rotary
           positions.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.fitting import fitted
from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.model import Transformer, TransformerConfig

BASES, MASK, GAP = 4, 4, 4
MOTIFS = np.random.default_rng(7).integers(0, BASES, (8, 10))
TRAINED, LENGTHS, ROWS, RATES = 64, (64, 128, 256), 32, (1e-3, 3e-3)
ENCODINGS = {
    'alibi_symmetric': 'alibi_symmetric()',
    'rope': 'rope()',
    'learned_absolute': f'learned_absolute(max_len={max(LENGTHS)})',
}


def sequences(rng: np.random.Generator, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Bases [rows, length], and whether each of them belongs to a motif."""
    bases, size = rng.integers(0, BASES, (rows, length)), MOTIFS.shape[1]
    inside = np.zeros((rows, length), bool)
    for row in range(rows):
        start = int(rng.integers(0, GAP, endpoint=True))
        while start + size <= length:
            bases[row, start : start + size] = MOTIFS[rng.integers(len(MOTIFS))]
            inside[row, start : start + size] = True
            start += size + int(rng.integers(0, GAP, endpoint=True))
    return bases, inside


def batch(rng: np.random.Generator, rows: int, length: int) -> dict[str, np.ndarray]:
    """Tokens with masks, the bases, and which of them are masked, in motifs and at all."""
    bases, inside = sequences(rng, rows, length)
    masked = rng.random(bases.shape) < 1 / 8
    tokens = np.where(masked, MASK, bases).astype(np.int32)
    return {'tokens': tokens, 'bases': bases, 'masked': masked, 'asked': masked & inside}


def loss(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    """Nats of a masked base."""
    nats = optax.softmax_cross_entropy_with_integer_labels(model(batch['tokens']), batch['bases'])
    return (nats * batch['masked']).sum() / jnp.maximum(batch['masked'].sum(), 1)


def measured(name: str, seed: int, options: argparse.Namespace) -> Found:
    """The share of masked bases of motifs that a trained encoder tells, by length."""
    steps = options.steps
    cfg = TransformerConfig(
        vocab_size=BASES + 1, output_size=BASES, train_len=TRAINED, layers=3, width=64, heads=4,
        kind='encoder', encoding=ENCODINGS[name],
    )  # fmt: skip
    for rate in RATES:
        rng = np.random.default_rng([seed, 1])
        batches = (batch(rng, ROWS, TRAINED) for _ in range(steps))
        model = fitted(Transformer(cfg, rngs=nnx.Rngs(seed)), loss, batches, steps=steps, rate=rate)
        for length in LENGTHS:
            test = batch(np.random.default_rng(length), 512, length)
            found = nnx.jit(lambda model, tokens: model(tokens))(model, test['tokens'])
            right = np.asarray(found.argmax(-1)) == test['bases']
            yield 'motifs', f'{name}, {rate:g}', length, float(right[test['asked']].mean())


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'encodings'),
    choose={'encodings': ENCODINGS},
    options={'steps': 5000},
    table={'title': 'Masked bases', 'x': 'length', 'value': 'told', 'trained': TRAINED},
)
