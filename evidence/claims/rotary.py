"""Measurements of rotary encodings and their extensions."""

import math

from evidence.claims.claim import Measure, Measurement, by_seed, mean, minus, number

DEPTHS = (0.25, 0.5, 0.75)


def found(name: str) -> Measure:
    """The keys that a model decodes at 4 and 16 times its trained length, over the depths."""
    return mean(*(number(name, length=length, depth=at) for length in (256, 1024) for at in DEPTHS))


def speed(group: str, name: str) -> Measure:
    """How many times as fast as RoPE, as log 10."""
    own = number(name, folder=group, panel='speed')
    return by_seed(math.log10, own)


MEASUREMENTS = {
    'R3': Measurement(
        'Distances up to 2047: the share of them at which the product of a drawn query and a key '
        'that is made for it is largest.',
        'exact',
        ('--groups', 'decay'),
        number('rope'),
        'of distances',
        margin=1.0,
        minutes=0.5,
        repeats='samples',
    ),
    'R5': Measurement(
        'Heads of 128 components, distances of 2048 to 4095, 8191 and 16,383: how many times the '
        'bound of interpolation fits into that of extrapolation.',
        'exact',
        ('--groups', 'bound'),
        number('pi'),
        'times',
        margin=300.0,  # half of what the paper says
        minutes=0.5,
        repeats='cases',
        remark='The constant of the paper is too small to be a bound; ours is 1.999 where it has '
        '1.737.',
    ),
    'R20': Measurement(
        'Loss and gradient of a model of 2 layers of width 128 on 8 x 256 tokens: how many times '
        'as fast CARoPE is as RoPE, log 10.',
        'rotary_times',
        (),
        speed('training', 'carope'),
        'orders of magnitude',
        margin=0.02,  # 5 percent
        minutes=4,
        repeats='rounds',
    ),
    'R29': Measurement(
        'A model of 2 layers of width 128 behind 32,768 tokens: how many times as many tokens a '
        'second LM-Infinite decodes with a cache of 64 first tokens and 2048 last ones as RoPE '
        'with all, log 10.',
        'rotary_times',
        (),
        speed('decoding', 'lm_infinite'),
        'orders of magnitude',
        margin=0.435,  # 2.72 times
        minutes=4,
        repeats='rounds',
    ),
    'R30': Measurement(
        'Passkeys in the middle of 256 and of 1024 tokens after training with 16 to 64, decoded: '
        'LM-Infinite with the five best keys minus LM-Infinite without them.',
        'infinite_passkeys',
        (),
        minus(found('rope | lm_infinite(top_k=5)'), found('rope | lm_infinite()')),
        'of exact match',
        margin=0.05,
        minutes=6,
    ),
}
