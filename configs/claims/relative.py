"""Measurements of biases and of other changes of the scores."""

from configs.claims.claim import Measurement, above, below, by_seed, lead_in_nats, minus, number

FIRST = ('--only', 'nope', 'rope', 'alibi', 't5_rpe', 'kerple', 'fire')
SAME = {'protocol': 'same_tokens'}


def gain(name: str, near: int, far: int):
    """How many nats fewer the same tokens need with a context of `far` than of `near`."""
    return minus(number(name, 'nll', length=near, **SAME), number(name, 'nll', length=far, **SAME))


def holds_level(name: str, near: int, far: int, slack: float):
    """`slack` minus the rise of the loss from `near` to `far`, on the same tokens."""
    return by_seed(lambda g: g + slack, gain(name, near, far))


MEASUREMENTS = {
    'B1': Measurement(
        'The same bytes of text in windows of 128 and 256 after training with 128: 0.02 nats minus '
        'the rise of the loss of ALiBi.',
        'first_comparison',
        FIRST,
        holds_level('alibi', 128, 256, 0.02),
        'nats a byte',
        margin=0.005,
        minutes=40,
    ),
    'B5': Measurement(
        'The same bytes of text in windows of 1024 after training with 128: nats that KERPLE needs '
        'less than the better of ALiBi and T5.',
        'first_comparison',
        FIRST,
        lead_in_nats('kerple', 'alibi', 't5_rpe', length=1024, **SAME),
        'nats a byte',
        margin=0.02,
        minutes=40,
    ),
    'B6': Measurement(
        'The same bytes of text in windows of 1024 after training with 128: nats that FIRE needs '
        'less than the best of T5, ALiBi and KERPLE.',
        'first_comparison',
        FIRST,
        lead_in_nats('fire', 'alibi', 't5_rpe', 'kerple', length=1024, **SAME),
        'nats a byte',
        margin=0.02,
        minutes=40,
    ),
    'B8': Measurement(
        'The same bytes of code in windows of 256 and 4096 after training with 256: how much more '
        'the loss rises with a series that diverges (harmonic) than with one that converges (1).',
        'relative_bias',
        ('--only', 'rpe_type1', 'rpe_type2', 'rpe_harmonic'),
        minus(gain('rpe_type1', 256, 4096), gain('rpe_harmonic', 256, 4096)),
        'nats a byte',
        margin=0.02,
        minutes=8,
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
