"""Patches of one of several images, asked for by image, row and column: index and shift of ids.

Data:      three images of 3 x 3 patches, drawn from 16 kinds, and nine questions, each a token that
           names the image, the row and the column of a patch. The answer is the kind of the patch.
Measured:  questions that an encoder of 2 layers of width 64 answers. Its token vectors get a
           trained function of row and column (`learnable_fourier`): with `image_shift` as it is,
           with the shift alone, with the vectors of the images alone, and with neither.
Paper:     Xia et al. (arXiv 2510.06679): an index and a shift of positions keep images apart.
"""

import argparse

import jax
import numpy as np
import optax
from flax import nnx

from evidence.experiments.fitting import fitted
from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.methods.image_shift import image_ids
from posenc_jax.protocol.tokens import Tokens

IMAGES, SIDE, KINDS, QUESTIONS = 3, 3, 16, 9
SIZES = (*[(SIDE, SIDE)] * IMAGES, (1, QUESTIONS))  # the questions are an image of one row
PATCHES = IMAGES * SIDE**2
VARIANTS = {
    'index and shift': '',
    'shift': ', index=False',
    'index': ', shift=False',
    'neither': ', index=False, shift=False',
}


def batch(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    """Tokens, patches first, and the kinds that are asked for."""
    kinds = rng.integers(0, KINDS, (rows, PATCHES))
    asked = rng.integers(0, PATCHES, (rows, QUESTIONS))
    answers = np.take_along_axis(kinds, asked, axis=1)
    return {'tokens': np.concatenate([kinds, KINDS + asked], axis=1), 'answers': answers}


def logits(model: Transformer, tokens: jax.Array) -> jax.Array:
    """The logits at the questions."""
    return model(tokens, Tokens.of(positions=image_ids(SIZES)[None]))[:, PATCHES:]


def loss(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    """Nats of an answer."""
    found = logits(model, batch['tokens'])
    return optax.softmax_cross_entropy_with_integer_labels(found, batch['answers']).mean()


def measured(variant: str, seed: int, options: argparse.Namespace) -> Found:
    """The share of questions that a trained model answers."""
    steps = options.steps
    cfg = TransformerConfig(
        vocab_size=KINDS + PATCHES, output_size=KINDS, train_len=PATCHES + QUESTIONS, layers=2,
        width=64, heads=4, kind='encoder',
        encoding=f'image_shift(sizes={SIZES}{VARIANTS[variant]}) | learnable_fourier(components=2)',
    )  # fmt: skip
    rng = np.random.default_rng([seed, 1])
    batches = (batch(rng, 64) for _ in range(steps))
    model = fitted(Transformer(cfg, rngs=nnx.Rngs(seed)), loss, batches, steps=steps, rate=3e-3)
    test = batch(np.random.default_rng(0), 512)
    found = np.asarray(nnx.jit(logits)(model, test['tokens']).argmax(-1))
    yield 'patches', variant, IMAGES, float((found == test['answers']).mean())


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'variants'),
    choose={'variants': VARIANTS},
    options={'steps': 600},
    table={'title': 'Patches of images', 'x': 'images', 'value': 'answered'},
)
