"""Texts longer than the limit of an encoder: TULIP against cutting them off.

Data:      a text of 16 to 32 tokens of 64 kinds, and the vector that stands for its picture: the
           sum of drawn vectors of its kinds. A third of the kinds is rare, and a kind that is
           marked counts four times: the token in front of it is the mark.
Measured:  an encoder of texts with a table of 32 positions (2 layers of width 64, read at the last
           token) learns to find the picture of a text. TULIP swaps its table for RoPE, distils it
           on texts of up to 32 tokens, and expands the base. Both then look for the pictures of
           texts of 96 tokens among 128, the teacher with the first 32 tokens of each text.
Paper:     Najdenkoska et al. (arXiv 2410.10034): distilling into relative positions lifts the limit
           of 77 tokens, and long captions are found better than by CLIP.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.fitting import fitted
from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.conversion import tulip
from posenc_jax.lab.model import Transformer, TransformerConfig

KINDS, MARK, LIMIT, LONG, AMONG, ROWS = 64, 64, 32, 96, 128, 64
PICTURES = np.random.default_rng(7).standard_normal((KINDS, 32)) / 32**0.5


def texts(rng: np.random.Generator, rows: int, length: tuple[int, int]) -> dict[str, np.ndarray]:
    """Texts of a number of tokens in a range, padded on the left, and their pictures."""
    low, high = length
    tokens = rng.integers(0, KINDS, (rows, high))
    tokens[rng.random(tokens.shape) < 0.1] = MARK
    valid = np.arange(high) >= high - rng.integers(low, high, (rows, 1), endpoint=True)
    marked = np.pad(tokens[:, :-1] == MARK, ((0, 0), (1, 0))) & np.pad(
        valid[:, :-1], ((0, 0), (1, 0))
    )
    weight = np.where(valid & (tokens != MARK), 1 + 3 * marked, 0)
    picture = np.einsum('bl,bld->bd', weight, PICTURES[np.minimum(tokens, KINDS - 1)])
    return {'tokens': tokens.astype(np.int32), 'valid': valid, 'picture': picture}


def similarities(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    """Cosines of all texts (rows) and all pictures (columns)."""
    unit = lambda a: a * jax.lax.rsqrt((a * a).sum(-1, keepdims=True) + 1e-8)
    text = tulip.pooled(model, batch['tokens'], batch['valid'])[:, : PICTURES.shape[1]]
    return unit(text) @ unit(batch['picture']).T


def loss(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    """The contrastive loss of texts, at a temperature of 0.05."""
    scores, own = similarities(model, batch) / 0.05, jnp.arange(len(batch['tokens']))
    both = [
        optax.softmax_cross_entropy_with_integer_labels(s, own).mean() for s in (scores, scores.T)
    ]
    return (both[0] + both[1]) / 2


def found(model: Transformer, batch: dict[str, np.ndarray]) -> float:
    """The share of texts whose picture is the nearest."""
    scores = np.asarray(nnx.jit(similarities)(model, batch))
    return float((scores.argmax(1) == np.arange(len(scores))).mean())


def cut(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first tokens of texts, up to the limit of the table."""
    return {**batch, **{name: batch[name][:, :LIMIT] for name in ('tokens', 'valid')}}


def measured(seed: int, options: argparse.Namespace) -> Found:
    """The share of pictures that are found, by model and tokens of a text."""
    steps, distilled = options.steps, options.distilled
    cfg = TransformerConfig(
        vocab_size=KINDS + 1, train_len=LIMIT, layers=2, width=64, heads=4,
        encoding=f'learned_absolute(max_len={LIMIT})',
    )  # fmt: skip
    rng, range_ = np.random.default_rng([seed, 1]), (LIMIT // 2, LIMIT)
    batches = (texts(rng, ROWS, range_) for _ in range(steps))
    teacher = fitted(Transformer(cfg, rngs=nnx.Rngs(seed)), loss, batches, steps=steps)
    more = [texts(rng, ROWS, range_) for _ in range(distilled)]
    student, _ = tulip.distill(
        teacher,
        tulip.swap(teacher),
        np.stack([one['tokens'] for one in more]),
        np.stack([one['valid'] for one in more]),
        optimizer=optax.adamw(optax.cosine_decay_schedule(1e-3, distilled), weight_decay=0.1),
    )
    near, far = (texts(np.random.default_rng(n), AMONG, (n, n)) for n in (LIMIT, LONG))
    expanded = student.extend(tulip.expansion_spec(LONG, LIMIT))
    for name, model, batch in (
        ('cut', teacher, near), ('cut', teacher, cut(far)), ('TULIP', student, near),
        ('TULIP', expanded, far), ('TULIP, not expanded', student, far),
    ):  # fmt: skip
        length = LIMIT if batch is near else LONG
        yield 'pictures', name, length, found(model, batch)


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured),
    options={'steps': 800, 'distilled': 800},
    table={'title': 'Long texts', 'x': 'tokens', 'value': 'found', 'trained': LIMIT},
)
