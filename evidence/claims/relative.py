"""Measurements of biases and of other changes of the scores."""

import math

from evidence.claims.claim import Measurement, Results, above


def represented(results: Results) -> dict[int, float]:
    """- log10 of the largest error with which FIRE represents another bias, over its range."""
    errors = [results.values(name) for name in ('t5_rpe', 'alibi', 'kerple')]
    return {seed: -math.log10(max(own[seed] for own in errors)) for seed in errors[0]}


MEASUREMENTS = {
    'B7': Measurement(
        'Drawn biases of T5, ALiBi and KERPLE over 128 distances: how many decimals of the range '
        'are right in FIRE with weights that are worked out, of the worst.',
        'exact',
        ('--groups', 'fire'),
        represented,
        'decimals',
        margin=3.0,
        minutes=0.5,
    ),
    'B15': Measurement(
        '32 equal tokens without a mask learn their own index in 400 steps: URPE minus the biases '
        'of T5, in tokens that are right.',
        'exact',
        ('--groups', 'index'),
        above('urpe', 't5_rpe'),
        'of tokens',
        margin=0.5,
        minutes=1,
    ),
}
