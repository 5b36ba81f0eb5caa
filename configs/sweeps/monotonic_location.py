"""Location attention against content attention in a small recurrent encoder-decoder, on sources longer than trained.

Command:   python -m configs.sweeps.monotonic_location [--tasks copy lookup] [--seeds 0 1] [--steps 1500] [--out DIR]
Time:      about a minute for each task, variant and seed (two CPU cores)
Copy: ten digits, trained on 5 .. 10 of them, tested at 10, 15, 30 and 100. Lookup tables: eight random bijections of the
three-bit strings; `001 t1 t3 .` asks for `001`, t1 of it, t3 of that; trained on up to four tables, tested on 4 .. 100. Exact
match of the whole target with its end, under teacher forcing (the same as in greedy decoding). The set-up of the paper
(arXiv 2305.20019) with GRUs of 32 + 32 and 64, one head of 64, dropout 0.1 and 1500 batches of 32 where it has twice the
width, dropout 0.5 and many epochs. Expected: 'onestep' copies ten times the trained length (1.00 at every length after 600
steps, two seeds), content attention nothing beyond it (0.00 from 15 on). Lookup tables need 4000 steps; then one seed of two
composes 100 of them with 'relative' (0.98) and with 'onestep' (0.51), none with content attention. Writes OUT/results.csv and
OUT/results.png.
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from configs.sweeps.tables import report
from posenc_jax.core.command import Parser
from posenc_jax.mixers.encoder_decoder import EncoderDecoder

VARIANTS = {
    'content': dict(location=None, content='plain', mix=False),
    'content, mixed': dict(location=None, content='plain'),
    'relative': dict(location=None, content='relative'),
    'onestep': dict(location='onestep'),
    'monoattn': dict(location='monoattn'),
    'softstair': dict(location='softstair'),
    'free': dict(location='free'),
    'locattn': dict(location='locattn'),
    'locattn_s': dict(location='locattn_s'),
    'onestep and relative': dict(location='onestep', content='relative'),
}
PADDING, START, END, FIRST = 0, 1, 2, 3
STRINGS, TABLES = 8, 8


def copying(rng: np.random.Generator, length: int) -> tuple[list[int], list[int]]:
    digits = list(FIRST + rng.integers(0, 10, length))
    return digits, digits


def looking_up(rng: np.random.Generator, length: int) -> tuple[list[int], list[int]]:
    """A string and `length` tables; the last two of the eight are only asked for alone."""
    tables = [np.random.default_rng([9, number]).permutation(STRINGS) for number in range(TABLES)]
    chosen = rng.integers(0, TABLES if length == 1 else TABLES - 2, length)
    values = [int(rng.integers(STRINGS))]
    for number in chosen:
        values.append(int(tables[number][values[-1]]))
    return [FIRST + values[0], *(FIRST + STRINGS + chosen)], [FIRST + value for value in values]


# sample, symbols, trained lengths, tested lengths
TASKS = {
    'copy': (copying, FIRST + 10, (5, 10), (10, 15, 30, 100)),
    'lookup': (looking_up, FIRST + STRINGS + TABLES, (1, 4), (4, 5, 7, 9, 30, 100)),
}


def batch_of(sample, rng, count: int, lengths: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Sources with start and end, and targets with start and end; padded to the longest there can be."""
    pairs = [sample(rng, int(rng.integers(lengths[0], lengths[1], endpoint=True))) for _ in range(count)]
    sides = [[[START, *side, END] for side in sides] for sides in zip(*pairs)]
    width = lengths[1] + 3
    return tuple(np.array([row + [PADDING] * (width - len(row)) for row in side]) for side in sides)


def train(model: EncoderDecoder, sample, lengths, seed: int, steps: int) -> EncoderDecoder:
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    rng = np.random.default_rng([seed, 1])
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, steps, 1e-5)
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(schedule, weight_decay=0.01))

    @jax.jit
    def step(params, state, source, target, key):
        def loss(params):
            logits = nnx.merge(graphdef, params, rest)(source, source != PADDING, target[:, :-1], key=key)
            wanted = target[:, 1:]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
            return jnp.where(wanted != PADDING, losses, 0).sum() / (wanted != PADDING).sum()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for number in range(steps):
        source, target = batch_of(sample, rng, 32, lengths)
        params, state = step(params, state, source, target, jax.random.key(seed * 1_000_000 + number))
    return nnx.merge(graphdef, params, rest)


def exact_match(model: EncoderDecoder, sample, length: int, count: int = 256) -> float:
    source, target = batch_of(sample, np.random.default_rng([length, 7]), count, (length, length))
    found = nnx.jit(model)(source, source != PADDING, target[:, :-1]).argmax(-1)
    wanted = target[:, 1:]
    return float(((np.asarray(found) == wanted) | (wanted == PADDING)).all(1).mean())


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--tasks', nargs='+', choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument('--variants', nargs='+', choices=tuple(VARIANTS), default=list(VARIANTS), metavar='NAME')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--steps', type=int, default=1500)
    parser.add_argument('--out', type=pathlib.Path, default='runs/monotonic_location')
    arguments = parser.parse_args()
    rows = []
    for task in arguments.tasks:
        sample, symbols, trained, tested = TASKS[task]
        for name in arguments.variants:
            for seed in arguments.seeds:
                begin = time.perf_counter()
                sizes = dict(embedding=32, hidden=64, head_dim=64, rate=0.1)
                model = EncoderDecoder(symbols, **sizes, **VARIANTS[name], rngs=nnx.Rngs(seed))
                model = train(model, sample, trained, seed, arguments.steps)
                rows += [(task, name, length, seed, exact_match(model, sample, length)) for length in tested]
                scores = ' '.join(f'{row[4]:.2f}' for row in rows[-len(tested) :])
                print(f'{task}, {name}, seed {seed}: {scores} ({time.perf_counter() - begin:.0f} s)', flush=True)
    report(rows, arguments.out, title='Encoder-decoder beyond its trained length', x='length', value='exact match')


if __name__ == '__main__':
    main()
