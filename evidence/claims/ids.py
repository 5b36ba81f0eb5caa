"""Measurements of positions that are drawn, shared or given by a task."""

import math
import statistics

from evidence.claims.claim import Measurement, Results, above, below, by_seed, number
from evidence.experiments.models import CHOMSKY

BEYOND = (30, 40, 60, 80)


def randomized(results: Results) -> dict[int, float]:
    """Randomized minus plain positions, in symbols that are right, over tasks and lengths."""
    cells = [
        {
            side: results.values(
                f'{task}_{side}', 'token_accuracy', length=length, protocol='exact_match'
            )
            for side in ('randomized', 'plain')
        }
        for task in CHOMSKY
        for length in BEYOND
    ]
    return {
        seed: statistics.fmean(cell['randomized'][seed] - cell['plain'][seed] for cell in cells)
        for seed in sorted(cells[0]['plain'])
    }


MEASUREMENTS = {
    'A37': Measurement(
        'Samples of 40 modules of the standard library: the share whose syntax tree comes back '
        'from its sequence.',
        'exact',
        ('--groups', 'trees'),
        number('ast_flatten'),
        'of modules',
        margin=1.0,
        minutes=1,
    ),
    'A38': Measurement(
        'Fields of 6 x 6 tokens at equal likelihood: how many times more fields a second are drawn '
        'by diagonals, 256 at once, than one token at a time, log 10; where the likelihood is more '
        'than 0.01 nats a token worse, minus what it is worse.',
        'nar',
        (),
        by_seed(
            lambda own, other, nats, other_nats: (
                math.log10(own / other) if nats <= other_nats + 0.01 else other_nats - nats
            ),
            *(number(name, panel='fields a second') for name in ('nar', 'raster_2d')),
            *(number(name, panel='nats a token') for name in ('nar', 'raster_2d')),
        ),
        'orders of magnitude',
        margin=0.38,  # 2.4 times
        minutes=15,
        remark='Each order is one compiled program. The arithmetic of 256 fields takes most of the '
        'time on a CPU, and it is the same in both. Other programs ran beside this one; another '
        'time the effect was -0.09 to 0.',
    ),
    'A9': Measurement(
        'Six of the 15 tasks in an encoder with sinusoids, trained to 20 symbols: randomized minus '
        'plain positions, in symbols that are right, over 30 to 80 symbols.',
        'models',
        ('chomsky',),
        randomized,
        'of symbols',
        margin=0.02,
        minutes=35,
    ),
    'A13': Measurement(
        'Bytes of text read in windows of 1024 after training with 256: nats that BiPE with RoPE '
        'needs less than RoPE.',
        'text',
        ('bilevel',),
        below('bipe_rope', 'rope', length=1024, protocol='same_tokens'),
        'nats a byte',
        margin=0.02,
        minutes=55,
        remark='There both sides are worse than a table of pairs of bytes. At twice the length '
        'BiPE with RoPE has 1.51 to 1.55 nats and RoPE 2.58 to 4.15, where 5-grams have 1.29.',
    ),
    'A14': Measurement(
        'Bytes of text read in windows of 1024 after training with 256: nats that BiPE with ALiBi '
        'needs less than ALiBi.',
        'text',
        ('bilevel',),
        below('bipe_alibi', 'alibi', length=1024, protocol='same_tokens'),
        'nats a byte',
        margin=0.02,
        minutes=55,
    ),
    'A15': Measurement(
        'The next snapshot of a signal from 24 snapshots after training with 16: the squared error '
        'of forward minus that of reverse positions, over the power of the signal.',
        'channel_prediction',
        (),
        above('forward', 'reverse', x=24.0),
        'of the power',
        margin=0.05,
        minutes=12,
    ),
    'A28': Measurement(
        'Cumulative sums of numbers from an interval ten times as large as in training: how many '
        'times smaller the squared error is with positional than with standard attention, log 10.',
        'positional_attention',
        ('--tasks', 'cumsum'),
        by_seed(
            lambda standard, positional: math.log10(standard / positional),
            number('standard', panel='cumsum', x=10.0),
            number('positional', panel='cumsum', x=10.0),
        ),
        'orders of magnitude',
        margin=0.3,
        minutes=8,
    ),
}
