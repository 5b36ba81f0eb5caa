"""Location attention against content attention in a small recurrent encoder-decoder.

The models are tested on sources that are longer than those of training.

Setting:   The variants of `htr_attention` (htr-KIND-POSITIONS) run where --variants names them.
Writes results.csv and results.png to WORKDIR: the exact match of the whole target with its end, by
length. It is measured under teacher forcing, which gives the same exact match as greedy decoding.
The first length stands for the trained ones. The model is that of the paper (arXiv 2305.20019) and
its code. `--width 128 --dropout 0.5 --steps 31300` are the size and training time of the paper. As
in the paper, training takes batches of 32 from 10,001 samples.
Differs:   Samples may repeat. For lookups the paper trains on all samples with a single table, and
           holds out some with several tables. The learning rate rises to `--peak` and falls along
           a cosine; in the paper it is 1e-3 and is halved when accuracy stops to grow. The last
           weights are tested on 256 samples a length; the paper tests the best weights on lengths
           of 10 .. 15, on 2001 samples.
"""

import argparse
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.tables import report
from posenc_jax.lab.files.command import Parser
from posenc_jax.lab.tasks.source_target import TRANSDUCTIONS, Transduction
from posenc_jax.mixers.encoder_decoder import EncoderDecoder
from posenc_jax.mixers.htr_attention import KINDS, POSITIONS, HTRAttention
from posenc_jax.protocol.errors import SpecError, check_choice

# The names are those of the paper. 'mix' joins location and content; in 'pr' the next step counts
# from where location alone attended.
VARIANTS = {
    'content': dict(location=None, content='plain', both_ways=False),
    'relative': dict(location=None, content='relative', both_ways=False),
    'bi-relative': dict(location=None, content='relative'),
    'bi-rope': dict(location=None, content='rotary'),
    'locattn': dict(location='locattn', both_ways=False),
    'locattn-s': dict(location='locattn_s', both_ways=False),
    'onestep': dict(location='onestep'),
    'monoattn': dict(location='monoattn'),
    'rmonoattn': dict(location='relu'),
    'onestep-step2': dict(location='locattn_sigmoid'),
    'onestep-step3': dict(location='softstair'),
    'onestep-sigmoid': dict(location='free'),
}
for alone in ('locattn', 'locattn-s', 'onestep', 'monoattn', 'rmonoattn'):
    VARIANTS[f'mix-{alone}'] = dict(VARIANTS[alone], content='plain')
    VARIANTS[f'mix-{alone}-pr'] = dict(VARIANTS[alone], content='plain', position_past=True)
for mixed in ('mix-locattn', 'mix-locattn-s'):
    VARIANTS[f'gru-{mixed}'] = dict(VARIANTS[mixed], gru=True)
OF_THE_PAPER = tuple(VARIANTS)
# The attention of arXiv 1903.07377 in the same encoder-decoder, without and with positions.
for kind in KINDS:
    for positions in POSITIONS:
        other = functools.partial(HTRAttention, kind=kind, positions=positions)
        VARIANTS[f'htr-{kind}-{positions}'] = dict(attention=other, both_ways=False)
# ids of padding, of the start of every target, and of the first word of a task
PADDING, START, WORDS = 0, 1, 2
TRAINED, BATCH = 10_001, 32  # samples


def samples_of(
    task: Transduction, rng: np.random.Generator, count: int, lengths: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sources, their lengths, and targets behind START; each padded to the longest."""
    ids = {word: WORDS + number for number, word in enumerate(task.words)}
    pairs = [
        task(rng, int(rng.integers(lengths[0], lengths[1], endpoint=True))) for _ in range(count)
    ]
    sources, targets = ([[ids[word] for word in side] for side in sides] for sides in zip(*pairs))

    def padded(rows):
        width = max(map(len, rows))
        return np.array([row + [PADDING] * (width - len(row)) for row in rows])

    return (
        padded(sources),
        np.array([len(row) for row in sources]),
        padded([[START, *row] for row in targets]),
    )


def train(graphdef, params, task: Transduction, seeds: list[int], steps: int, peak: float):
    """Trains one model a seed, side by side; the leaves of `params` are stacked over seeds."""
    data = samples_of(task, np.random.default_rng(1), TRAINED, task.trained)
    rngs = [np.random.default_rng([seed, 1]) for seed in seeds]
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, min(100, steps // 2), steps, 0.01 * peak
    )
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(schedule))
    keys = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))

    @jax.jit
    @jax.vmap
    def step(params, state, source, length, target, key):
        def loss(params):
            logits = nnx.merge(graphdef, params)(source, length, target[:, :-1], key=key)
            wanted = target[:, 1:]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
            return jnp.where(wanted != PADDING, losses, 0).sum() / (wanted != PADDING).sum()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.vmap(optimizer.init)(params)
    for number in range(steps):
        chosen = np.stack([rng.integers(0, TRAINED, BATCH) for rng in rngs])
        drop = keys(jax.random.key(number), np.array(seeds, np.uint32))
        params, state = step(params, state, *(array[chosen] for array in data), drop)
    return params


def exact_matches(
    graphdef, params, task: Transduction, lengths: list[tuple[int, int]], count: int
) -> list[list[float]]:
    """By length and seed."""
    tests = [samples_of(task, np.random.default_rng([7, *span]), count, span) for span in lengths]
    widths = [
        max(test[side].shape[1] for test in tests) for side in (0, 2)
    ]  # one shape, compiled once
    read = jax.jit(
        jax.vmap(
            lambda params, *text: nnx.merge(graphdef, params)(*text).argmax(-1),
            in_axes=(0, None, None, None),
        )
    )
    rows = []
    for source, length, target in tests:
        source, target = (
            np.pad(a, ((0, 0), (0, width - a.shape[1])))
            for a, width in zip((source, target), widths)
        )
        right = (np.asarray(read(params, source, length, target[:, :-1])) == target[:, 1:]) | (
            target[:, 1:] == PADDING
        )
        rows.append(right.all(2).mean(1).tolist())
    return rows


def one_of(what, choices):
    def read(value):
        try:
            return check_choice(what, value, choices)
        except SpecError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def at_least(kind, least, below=float('inf')):
    def read(value):
        try:
            found = kind(value)
        except ValueError:
            found = None
        if found is None or not least <= found < below:
            word, bound = (
                'whole number' if kind is int else 'number',
                f' and below {below}' if below < float('inf') else '',
            )
            raise argparse.ArgumentTypeError(
                f'expected a {word} of at least {least}{bound}, got {value!r}'
            )
        return found

    return read


def main(arguments: list[str] | None = None):
    parser = Parser(prog='monotonic_location', description=__doc__.splitlines()[0])
    parser.add_argument(
        '--tasks',
        nargs='+',
        type=one_of('a task', TRANSDUCTIONS),
        default=['copy', 'recopy'],
        metavar='NAME',
    )
    parser.add_argument(
        '--variants',
        nargs='+',
        type=one_of('a variant', VARIANTS),
        default=list(OF_THE_PAPER),
        metavar='NAME',
    )
    parser.add_argument('--seeds', type=at_least(int, 0, 2**32), nargs='+', default=[0, 1])
    parser.add_argument('--steps', type=at_least(int, 2), default=2000)
    parser.add_argument(
        '--width',
        type=at_least(int, 2),
        default=64,
        help='of states and heads; symbols have half of it',
    )
    parser.add_argument('--dropout', type=at_least(float, 0, 1), default=0.1)
    parser.add_argument(
        '--peak', type=at_least(float, 0), default=3e-3, help='largest learning rate'
    )
    parser.add_argument(
        '--samples', type=at_least(int, 1), default=256, help='tested at each length'
    )
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/monotonic_location')
    given = parser.parse_args(arguments)
    if given.width % 2:
        parser.error(
            f'--width must be even, half of it for each direction; got {given.width}, the '
            f'nearest is {given.width + 1}'
        )
    try:
        given.workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f'--workdir must be a directory that can be made: {error}')
    sizes, rows = (
        dict(
            embedding=given.width // 2, hidden=given.width, head_dim=given.width, rate=given.dropout
        ),
        [],
    )
    for task_name in given.tasks:
        task = TRANSDUCTIONS[task_name]
        lengths = [task.trained, *((length, length) for length in task.tested)]
        for name in given.variants:
            begin, used = time.perf_counter(), time.process_time()
            new = lambda seed: EncoderDecoder(
                WORDS + len(task.words), **sizes, **VARIANTS[name], rngs=nnx.Rngs(seed)
            )
            graphdef = nnx.graphdef(new(0))
            params = jax.tree.map(
                lambda *leaves: jnp.stack(leaves), *(nnx.state(new(seed)) for seed in given.seeds)
            )
            params = train(graphdef, params, task, given.seeds, given.steps, given.peak)
            scores = exact_matches(graphdef, params, task, lengths, given.samples)
            for place, seed in enumerate(given.seeds):
                rows += [
                    (task_name, name, span[1], seed, found[place])
                    for span, found in zip(lengths, scores)
                ]
                print(
                    f'{task_name}, {name}, seed {seed}: '
                    + ' '.join(f'{found[place]:.2f}' for found in scores),
                    flush=True,
                )
            print(
                f'{time.perf_counter() - begin:.0f} s, {time.process_time() - used:.0f} s of '
                'processor time',
                flush=True,
            )
    report(
        rows,
        given.workdir,
        title='Encoder-decoder beyond its trained length',
        x='length',
        value='exact match',
    )
