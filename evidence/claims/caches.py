"""Measurements of what smaller caches and parallel contexts cost in quality."""

import statistics

from evidence.claims.claim import Measurement, Results, by_seed, number
from evidence.experiments.public_caches import KINDS

HALF = 0.5  # of the heads stream


def streaming(results: Results) -> dict[int, float]:
    """With half of the heads streaming: trained minus drawn gates, or minus the loss of accuracy
    against the full cache where that is above 0.05.
    """
    full = results.values('trained gates', x=0.0)
    trained = results.values('trained gates', x=HALF)
    found = {}
    for seed, value in trained.items():
        drawn = [
            row['value']
            for row in results.rows
            if (row['name'], row['x'], row['seed']) == ('random gates', HALF, seed)
        ]
        lost = full[seed] - value
        found[seed] = value - statistics.fmean(drawn) if lost <= 0.05 else -lost
    return found


def edited(*values: float) -> float:
    """The least share of saved operations of all edits, or 0 where the largest divergence is above
    0.02 nats.
    """
    saved, divergence = min(values[: len(KINDS)]), max(values[len(KINDS) :])
    return saved if divergence <= 0.02 else 0.0


def public(test: str, group: str, measure, unit: str, margin: float, minutes: float):
    """A measurement by the sweep of caches of a public model."""
    arguments = ('--groups', group)
    return Measurement(
        test, 'public_caches', arguments, measure, unit, margin, minutes, repeats='samples'
    )


MEASUREMENTS = {
    'X2': Measurement(
        'Passkeys in 64 tokens, 4 layers of 4 heads, half of which stream: the accuracy with '
        'trained gates minus that with drawn gates, as a mean of four draws; where trained gates '
        'lose more than 0.05 against the full cache, minus that loss.',
        'duo_attention',
        ('--set', 'mesh.cpu_devices=1'),
        streaming,
        'of exact match',
        margin=0.05,
        minutes=4,
    ),
    'X3': public(
        'SmolLM2 on windows of 512 tokens of prose, whose queries read one key in 16, chosen by '
        'one channel in 16, in all layers but two: how far the rise of the loss stays below 0.1 '
        'nats.',
        'sparse',
        by_seed(lambda few, every: 0.1 - (few - every), number('calibrated'), number('every key')),
        'nats a token',
        0.05,  # the rise that the paper reports is about as large
        3,
    ),
    'X5': public(
        'SmolLM2 behind 432 tokens of prose, of which 16 are inserted, replaced or deleted in the '
        'middle: the share of the operations behind the edit that PIE saves, the least of the '
        'three; none where the next 64 tokens diverge by more than 0.02 nats from those of a new '
        'cache.',
        'edits',
        by_seed(
            edited,
            *(number(f'{what}, {kind}') for what in ('saved', 'divergence') for kind in KINDS),
        ),
        'of the operations',
        0.85,
        2,
    ),
    'X6': public(
        'SmolLM2, 20 questions after a code in one of 8 contexts of 48 tokens: right digits '
        'with APE, whose temperature is chosen on 6 other questions, minus those with '
        'contexts that are read each on its own. If APE has less than 93 % of those of '
        'contexts in a row, the effect is how far it is below these 93 %.',
        'contexts',
        by_seed(
            lambda own, plain, row: own - (plain if own >= 0.93 * row else 0.93 * row),
            number('APE'),
            number('parallel'),
            number('in a row'),
        ),
        'of the digits',
        0.036,  # the smaller gain of the paper
        5,
    ),
    'X8': public(
        'SmolLM2 at the end of windows of 512 tokens: how much larger the entropy of attention is '
        'behind 8 pieces that are read apart than behind one, than behind 8 with a shared sink, '
        'and how much the choice of two of those pieces lowers it, the least of the three.',
        'pieces',
        by_seed(
            lambda one, pieces, sink, best: min(pieces - one, pieces - sink, sink - best),
            *(number(f'entropy, {name}') for name in ('one piece', 'pieces', 'sink', 'best two')),
        ),
        'nats',
        0.05,
        3,
    ),
}
