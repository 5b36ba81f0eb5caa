"""Measurements of rotary encodings and their extensions."""

from configs.claims.claim import Measurement, number

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
        remark='The constant of the paper is too small to be a bound; ours is 1.999 where it has '
        '1.737.',
    ),
}
