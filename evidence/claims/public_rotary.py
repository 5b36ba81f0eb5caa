"""Measurements of rotary frequencies, heads and Ms-PoE in a public model."""

import statistics

from evidence.claims.claim import Measurement, above, by_seed, number
from evidence.experiments.public_needles import GROUPS, RELEASED
from evidence.experiments.public_rotary import DEPTHS

USED = {'panel': 'nearby attention'}
FOUND = {'panel': f'{GROUPS["within"][0]} tokens, right', 'x': 0.0}
MEASUREMENTS = {
    'R2': Measurement(
        'SmolLM2-135M, three samples of texts: the share of the slowest quarter of the frequencies '
        'in the norms of queries and keys beyond a quarter; and the attention to the token itself '
        'and the one before of the 14 heads with most of the fastest quarter, minus that of all '
        'heads; the less of the two.',
        'public_rotary',
        ('--groups', 'usage'),
        by_seed(
            lambda slow, own, every: min(slow - 0.25, own - every),
            number('all heads', panel='slowest quarter'),
            number('fast heads', **USED),
            number('all heads', **USED),
        ),
        'as a share',
        margin=0.1,
        minutes=2,
        repeats='samples',
    ),
    'R22': Measurement(
        'SmolLM2-135M, JSON objects of 512 tokens, three samples of 36 questions for values at the '
        'start, in the middle and at the end: whole values that are right with Ms-PoE, where query '
        'heads that share a key head share its ratio, minus those without.',
        'public_rotary',
        ('--groups', 'middle'),
        by_seed(
            lambda *gains: statistics.fmean(gains),
            *(
                above('ms_poe_of_groups', 'plain', panel='right values', x=depth)
                for depth in DEPTHS
            ),
        ),
        'of values',
        margin=0.02,
        minutes=15,
        repeats='samples',
    ),
    'R23': Measurement(
        'SmolLM2-135M, three samples of four texts of 7,168 tokens with eight numbers of seven '
        'digits, all of them asked: the share of right numbers with STRING and the released '
        'attention factor, minus that of the model as it is.',
        'public_needles',
        ('--groups', 'within'),
        above(RELEASED, 'none', **FOUND),
        'of numbers',
        margin=0.1,
        minutes=40,
        repeats='samples',
    ),
    'R31': Measurement(
        'SmolLM2-135M, three samples of texts, 512 tokens behind 512 others: how many nats a token '
        'the loss is larger without the 14 heads (of 270) with the largest score of '
        '`token_distance` than without 14 drawn ones.',
        'public_rotary',
        ('--groups', 'heads'),
        above('without positional heads', 'without drawn heads', panel='loss'),
        'nats a token',
        margin=0.05,
        minutes=5,
        repeats='samples',
    ),
}
