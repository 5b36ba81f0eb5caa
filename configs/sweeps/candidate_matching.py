"""Finds which of eight candidates comes from the context: Uni-Encoder and two other encoders.

Command:   python -m configs.sweeps.candidate_matching [--seeds 0 1] [--steps 300]
Time:      half a minute ('arrow', 'diag') to two minutes ('cross') for each seed (two CPU cores
           with other work on them)
Number:    accuracy, and time to score 32 contexts, seeds 0 and 1
           arrow   1.000, 1.000    6.0 ms,  6.0 ms
           diag    0.125, 0.121    4.6 ms,  6.4 ms
           cross   1.000, 1.000   20.2 ms, 18.7 ms
A context has 12 symbols of 32. The right candidate has two of them; the others have two that are
not in the context. The three models have the same size and the same code. 'arrow' (Uni-Encoder)
reads all candidates beside one context. 'diag' lets no part see another, so it scores a candidate
without its context, and its accuracy is chance (1/8). 'cross' is a cross-encoder: it reads the
context again for every candidate. Accuracy is over 512 contexts. The time is that of scoring 32
contexts, the least of ten runs.
Paper:     arXiv 2106.01263: as accurate as the cross-encoder, 4 times as fast.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from posenc_jax.core.command import Parser
from posenc_jax.model.candidate_scorer import CandidateScorer
from posenc_jax.model.config import TransformerConfig
from posenc_jax.positions.uni_encoder import uni_encoder_layout, uni_encoder_loss

CONTEXT, SYMBOLS, CANDIDATES, PIECE = 12, 32, 8, 2
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


def build(mode: str, seed: int):
    shape = 'square' if mode == 'cross' else mode
    sizes = dict(vocab_size=SYMBOLS + 3, train_len=CONTEXT, layers=2, width=64, heads=4)
    cfg = TransformerConfig(
        encoding=f'uni_encoder(shape={shape!r}) | rope()', kind='encoder', **sizes
    )
    graphdef, params, rest = nnx.split(CandidateScorer(cfg, rngs=nnx.Rngs(seed)), nnx.Param, ...)
    count = 1 if mode == 'cross' else CANDIDATES
    scores = lambda params, layout: nnx.merge(graphdef, params, rest)(**layout, candidates=count)[
        0
    ].reshape(-1, CANDIDATES)
    return params, scores


def run(mode: str, seed: int, steps: int, batch: int) -> tuple[float, float]:
    """Accuracy, and seconds to score 32 contexts."""
    params, scores = build(mode, seed)
    optimizer = optax.adamw(
        optax.warmup_cosine_decay_schedule(0.0, 2e-3, 50, steps, 1e-4), weight_decay=1e-4
    )

    @jax.jit
    def step(params, state, layout, golden):
        gradient = jax.grad(lambda params: uni_encoder_loss(scores(params, layout), golden))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    rng, state = np.random.default_rng([seed, 1]), optimizer.init(params)
    for _ in range(steps):
        context, candidates, golden = examples(rng, batch)
        params, state = step(params, state, laid_out(context, candidates, mode), golden)
    score, rng, right, times = jax.jit(scores), np.random.default_rng([seed, 2]), [], []
    for _ in range(16):
        context, candidates, golden = examples(rng, 32)
        layout = jax.tree.map(jnp.asarray, laid_out(context, candidates, mode))
        begin = time.perf_counter()
        found = jax.block_until_ready(score(params, layout))
        times.append(time.perf_counter() - begin)
        right.append(np.asarray(found).argmax(1) == golden)
    return float(np.mean(right)), min(times[6:])


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--batch', type=int, default=32)
    arguments = parser.parse_args()
    for mode in MODES:
        for seed in arguments.seeds:
            begin = time.perf_counter()
            accuracy, seconds = run(mode, seed, arguments.steps, arguments.batch)
            print(
                f'{mode:6} seed {seed}: accuracy {accuracy:.3f}, {1000 * seconds:.1f} ms for 32 '
                'contexts, '
                f'{time.perf_counter() - begin:.0f} s in all', flush=True,
            )  # fmt: skip


if __name__ == '__main__':
    main()
