"""Finds which of eight candidates comes from the context: Uni-Encoder and two other encoders.

Time:      half a minute ('arrow', 'diag') to two minutes ('cross') for each seed (two CPU cores
           with other work on them)
Number:    docs/claims.md, claim A24; accuracy, seeds 0 and 1: arrow 1.000, 1.000, diag 0.125,
           0.121, cross 1.000, 1.000
A context has 12 symbols of 32. The right candidate has two of them; the others have two that are
not in the context. The three models have the same size and the same code. 'arrow' (Uni-Encoder)
reads all candidates beside one context. 'diag' lets no part see another, so it scores a candidate
without its context, and its accuracy is chance (1/8). 'cross' is a cross-encoder: it reads the
context again for every candidate. Accuracy is over 896 contexts. The contexts a second are those
of the median batch of 32; the models score every batch in turn.
Paper:     arXiv 2106.01263: as accurate as the cross-encoder, 4 times as fast.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.fitting import fitted
from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.model.candidate_scorer import CandidateScorer
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.methods.uni_encoder import uni_encoder_layout, uni_encoder_loss

CONTEXT, SYMBOLS, CANDIDATES, PIECE = 12, 32, 8, 2
BATCHES, COMPILED, CONTEXTS = 28, 3, 32  # the first batches are not timed
MODES = ('arrow', 'diag', 'cross')


def examples(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contexts [count, 12], candidates [count, 8, 2] of symbols 3, 4, ..., and which candidate is
    golden.
    """
    order = 3 + rng.permuted(np.tile(np.arange(SYMBOLS), (count, 1)), axis=1)
    context, absent = order[:, :CONTEXT], order[:, CONTEXT:]
    of_context = rng.permuted(context, axis=1)[:, None, :PIECE]
    golden = rng.integers(0, CANDIDATES, count)
    strangers = absent[:, : CANDIDATES * PIECE].reshape(count, CANDIDATES, PIECE)
    return (
        context,
        np.where((np.arange(CANDIDATES) == golden[:, None])[..., None], of_context, strangers),
        golden,
    )


def laid_out(context, candidates, mode: str) -> dict[str, np.ndarray]:
    """One row for a context with all of its candidates; of 'cross' one for each candidate."""
    if mode == 'cross':
        context, candidates = (
            np.repeat(context, CANDIDATES, axis=0),
            candidates.reshape(-1, 1, PIECE),
        )
    return uni_encoder_layout(context.tolist(), candidates.tolist(), cls=1, sep=2)


def scores(model: CandidateScorer, layout: dict[str, jax.Array], mode: str) -> jax.Array:
    """The scores [contexts, candidates]."""
    count = 1 if mode == 'cross' else CANDIDATES
    return model(**layout, candidates=count)[0].reshape(-1, CANDIDATES)


def trained(mode: str, seed: int, steps: int, batch: int):
    """The scores of a trained model, compiled: layout -> [contexts, candidates]."""
    shape = 'square' if mode == 'cross' else mode
    sizes = dict(vocab_size=SYMBOLS + 3, train_len=CONTEXT, layers=2, width=64, heads=4)
    cfg = TransformerConfig(
        encoding=f'uni_encoder(shape={shape!r}) | rope()', kind='encoder', **sizes
    )
    rng = np.random.default_rng([seed, 1])
    drawn = (examples(rng, batch) for _ in range(steps))
    model = fitted(
        CandidateScorer(cfg, rngs=nnx.Rngs(seed)),
        lambda model, batch: uni_encoder_loss(scores(model, batch[0], mode), batch[1]),
        ((laid_out(*pieces, mode), golden) for *pieces, golden in drawn),
        steps=steps,
        optimizer=optax.adamw(
            optax.warmup_cosine_decay_schedule(0.0, 2e-3, 50, steps, 1e-4), weight_decay=1e-4
        ),
    )
    graphdef, state = nnx.split(model)
    score = jax.jit(lambda state, layout: scores(nnx.merge(graphdef, state), layout, mode))
    return functools.partial(score, state)


def measured(score, seed: int) -> dict[str, tuple[float, float]]:
    """Accuracy and contexts a second of every mode. The modes score the same contexts in turn."""
    rng = np.random.default_rng([seed, 2])
    right, times = {mode: [] for mode in MODES}, {mode: [] for mode in MODES}
    for _ in range(BATCHES):
        context, candidates, golden = examples(rng, CONTEXTS)
        for mode in MODES:
            layout = jax.tree.map(jnp.asarray, laid_out(context, candidates, mode))
            begin = time.perf_counter()
            found = jax.block_until_ready(score[mode](layout))
            times[mode].append(time.perf_counter() - begin)
            right[mode].append(np.asarray(found).argmax(1) == golden)
    return {
        mode: (float(np.mean(right[mode])), CONTEXTS / statistics.median(times[mode][COMPILED:]))
        for mode in MODES
    }


def of_seed(seed: int, options: argparse.Namespace) -> Found:
    """The accuracy and the speed of every mode."""
    score = {mode: trained(mode, seed, options.steps, options.batch) for mode in MODES}
    for mode, (accuracy, rate) in measured(score, seed).items():
        yield 'accuracy', mode, CANDIDATES, accuracy
        yield 'contexts a second', mode, CANDIDATES, rate


PROGRAM = Program(
    __name__,
    __doc__,
    each(of_seed),
    options={'steps': 300, 'batch': 32},
    table={'title': 'Matching', 'x': 'candidates', 'value': 'value'},
)
