"""Measurements of what methods cost: times, and the memory that goes with them."""

import math

from evidence.claims.claim import Measurement, by_seed, number

WINDOW, LENGTH, CONTEXT = 128.0, 32768.0, 256.0


def times(*names: str, **where: object):
    """The smallest of some ratios of a run, log 10."""
    parts = (number(name, **where) for name in names)
    return by_seed(lambda *ratios: min(map(math.log10, ratios)), *parts)


def measurement(
    test: str, group: str, measure, unit: str, margin: float, minutes: float, remark: str = ''
) -> Measurement:
    """A measurement by a group of the sweep of times."""
    arguments = ('--groups', group)
    return Measurement(
        test, 'timings', arguments, measure, unit, margin, minutes, remark=remark, repeats='rounds'
    )


MEASUREMENTS = {
    'B3': measurement(
        'Train steps of 2048 bytes, 4 layers of width 160: the share of the time and of the '
        'temporary memory, the smaller of both, that ALiBi with windows of 128 bytes saves over '
        'sinusoids with windows of 256.',
        'steps',
        by_seed(
            lambda time, memory: 1 - max(time, memory),
            number('time of alibi'),
            number('memory of alibi'),
        ),
        'of the cost',
        0.05,  # about half of what the paper reports of both
        2,
        'Attention never holds a whole map of logits here, so a longer window takes hardly more '
        'memory.',
    ),
    'B11': measurement(
        'Train steps of 2048 bytes, 4 layers of width 160: the share of the temporary memory that '
        'CABLE with windows of 128 bytes saves over sinusoids with windows of 256; where it takes '
        'more than 1.05 times their time, 1.05 minus that ratio.',
        'steps',
        by_seed(
            lambda time, memory: 1 - memory if time <= 1.05 else 1.05 - time,
            number('time of cable'),
            number('memory of cable'),
        ),
        'of the memory',
        0.24,  # half of what the paper reports
        2,
        'Attention never holds a whole map of logits here, so a longer window takes hardly more '
        'memory.',
    ),
    'B17': measurement(
        'Causal attention of one head of 16 components over 32,768 tokens: how many times the time '
        'of kernelized attention softmax attention takes, log 10; where the time grows with more '
        'than the power 1.2 of the length, 1.2 minus that power.',
        'kernelized',
        by_seed(
            lambda ratio, slope: math.log10(ratio) if slope <= 1.2 else 1.2 - slope,
            number('softmax', x=LENGTH),
            number('slope', x=LENGTH),
        ),
        'orders of magnitude',
        0.3,  # 2 times
        2,
    ),
    'X1': measurement(
        'Decoding behind 32,768 tokens, 4 layers of 8 heads with keys of their own: how many times '
        'faster, and how many times less the cache takes, when half of the heads stream; the '
        'smaller of both, log 10.',
        'streaming',
        times('time', 'memory', x=LENGTH),
        'orders of magnitude',
        0.176,  # 1.5 times, the least of the figures of the paper
        2,
        'Half of the heads cannot save more than half of the cache.',
    ),
    'X4': measurement(
        'Decoding behind 32,768 tokens, 4 layers: how many times faster with one key and one '
        'channel in 16 in every layer, log 10.',
        'sparse',
        times('model', x=LENGTH),
        'orders of magnitude',
        0.28,  # 1.9 times
        2,
        'XLA selects and gathers the keys; the paper has a kernel for it.',
    ),
    'X7': measurement(
        '16 contexts of 256 tokens, 4 layers of width 160: how many times sooner the first token '
        'comes when the contexts are encoded each on its own, and none is cached, log 10.',
        'contexts',
        times('encoded', x=CONTEXT),
        'orders of magnitude',
        0.65,  # 4.5 times
        3,
    ),
}
