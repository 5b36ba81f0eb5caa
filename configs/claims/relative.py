"""Measurements of biases and of other changes of the scores."""

import math

from configs.claims.claim import Measurement, Results, above, below, by_seed


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
    'B13': Measurement(
        'Bytes of code in windows of 4096 after training with 256: 0.05 nats minus what BAM needs '
        'more than ALiBi.',
        'relative_bias',
        ('--only', 'bam', 'alibi'),
        by_seed(
            lambda more: 0.05 + more, below('bam', 'alibi', length=4096, protocol='nonoverlapping')
        ),
        'nats a byte',
        margin=0.005,
        minutes=6,
    ),
    'B23': Measurement(
        'Bytes of code in windows of 256: next bytes that RCMHA predicts right, minus those of '
        'Transformer-XL attention.',
        'relative_bias',
        ('--only', 'rcmha', 'transformer_xl'),
        above('rcmha', 'transformer_xl', 'token_accuracy', length=256, protocol='nonoverlapping'),
        'of bytes',
        margin=0.005,
        minutes=8,
    ),
}
