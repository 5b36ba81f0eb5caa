"""Measurements of what models know of positions."""

import math
import statistics

from evidence.claims.claim import Measurement, Results, above, by_seed, least, number
from evidence.experiments.coins import COUNTS

PROBE, SLOPE, ADJACENT = 'R2 of the probe', 'slope of the variance', 'adjacency score'
ORDER, NEURONS = 'change by permutations', 'positional neurons'


def largest(panel: str, name: str):
    """The largest value over the layers behind the first, seed by seed."""

    def measure(results: Results) -> dict[int, float]:
        found: dict[int, float] = {}
        for row in results.rows:
            if (row['panel'], row['name']) == (panel, name) and row['x'] >= 1:
                found[row['seed']] = max(row['value'], found.get(row['seed'], -math.inf))
        return found

    return measure


def measurement(test: str, measure, unit: str, margin: float, remark: str = '') -> Measurement:
    """A measurement by the sweep of analyses."""
    return Measurement(test, 'analyses', (), measure, unit, margin, minutes=12, remark=remark)


def public(
    test: str, group: str, measure, unit: str, margin: float, minutes: float, remark: str = ''
) -> Measurement:
    """A measurement by the sweep of analyses of a public model."""
    arguments = ('--groups', group)
    return Measurement(
        test, 'public_model', arguments, measure, unit, margin, minutes, remark=remark,
        repeats='samples',
    )  # fmt: skip


def distortion(results: Results) -> dict[int, float]:
    """The mean share behind the first layer minus that of the first."""
    found: dict[int, list[float]] = {}
    for row in sorted(results.rows, key=lambda row: row['x']):
        if row['name'] == 'share':
            found.setdefault(row['seed'], []).append(row['value'])
    return {seed: statistics.fmean(rest) - first for seed, (first, *rest) in found.items()}


def fall(name: str, few: int, many: int):
    """How many orders of magnitude nearer two vectors are with many repetitions than with few."""
    return by_seed(
        lambda before, after: math.log10(before / max(after, 1e-6)),
        number(name, x=float(few)),
        number(name, x=float(many)),
    )


def gap(name: str):
    """The mean log10 of the gap over the numbers of flips."""
    parts = (number(name, panel='gap', x=float(count)) for count in COUNTS)
    return by_seed(lambda *gaps: statistics.fmean(map(math.log10, gaps)), *parts)


MEASUREMENTS = {
    'N2': measurement(
        'Trained decoders of 4 layers without positions: R2 of a ridge probe of the position '
        'behind the best layer, on texts that the probe has not read.',
        largest(PROBE, 'nope'),
        'of the variance',
        0.15,
    ),
    'N3': measurement(
        'Decoders of 4 layers without positions, as they are drawn and after training: minus the '
        'slope of the log variance of the first layer of attention on the log of the position, the '
        'less of the two.',
        by_seed(
            lambda *slopes: -max(slopes),
            *(number(name, panel=SLOPE, x=1.0) for name in ('nope', 'nope, drawn')),
        ),
        'of slope',
        0.2,
    ),
    'N4': measurement(
        'Decoders of 4 layers without positions, as they are drawn and after training: the '
        'adjacency score behind the best layer minus 0.5, which is chance, the less of the two.',
        by_seed(
            lambda *scores: min(scores) - 0.5,
            *(largest(ADJACENT, name) for name in ('nope', 'nope, drawn')),
        ),
        'of the score',
        0.1,
    ),
    'N5': measurement(
        'Drawn models without positions: how many orders of magnitude more the last logits change '
        'under permutations in decoders of two layers than in encoders of two layers.',
        by_seed(
            lambda decoder, encoder: math.log10(decoder / max(encoder, 1e-8)),
            number('decoder_2', panel=ORDER),
            number('encoder', panel=ORDER),
        ),
        'orders of magnitude',
        2.0,
        'One causal layer alone changes as little as an encoder: it is a function of the set of '
        'earlier tokens.',
    ),
    'N7': measurement(
        'Trained decoders of 4 layers: the share of neurons that read ranges of positions in the '
        'first layer, with learned positions minus with RoPE.',
        above('learned_absolute', 'rope', panel=NEURONS, x=1.0),
        'of the neurons',
        0.05,
    ),
    'N6': public(
        'The smaller of two numbers: the rank correlation of logits with the place of the key '
        'behind a causal layer without weights or positions, and the share of the variance of '
        'mean logits on random tokens in SmolLM2 that is no function of the distance, as a mean '
        'over the layers behind the first, minus that of the first.',
        'mask',
        least(number('near keys'), distortion),
        'of the variance',
        0.1,
        2,
        'In SmolLM2 the share does not separate the mask from the sink of attention on the first '
        'token.',
    ),
    'N8': public(
        'SmolLM2 behind a digit that is repeated n times and another one: how much nearer the last '
        'vectors for n and n + 1 are with n = 512 than with n = 4, with activations of 32 or of 16 '
        'bits, the smaller of both, log 10.',
        'collapse',
        least(fall('32 bits', 4, 512), fall('16 bits', 4, 512)),
        'orders of magnitude',
        1.0,
        6,
    ),
    'N9': public(
        'SmolLM2 on texts of 256 tokens: how many times less than an equal share the median token '
        'has in the derivative of the last vector, log 10.',
        'squashing',
        by_seed(lambda share: -math.log10(share), number('median')),
        'orders of magnitude',
        0.3,  # half of the sensitivity
        2,
    ),
    'N12': public(
        'The mean vectors of SmolLM2 of 128 tokens of prose: how much more cosine another text '
        'costs that is inserted at the beginning than at the end, as a mean over five sizes of it.',
        'embeddings',
        above('end', 'beginning'),
        'of cosine',
        0.02,
        4,
        'SmolLM2 is a decoder that was not trained for embeddings.',
    ),
    'N10': Measurement(
        'Decoders of two layers that have learned coin flips: how many times larger the distance '
        'to a martingale is with RoPE, learned positions and ALiBi than without positions, log '
        '10, as a mean over 4 to 63 flips and the three.',
        'coins',
        (),
        by_seed(
            lambda nope, *others: statistics.fmean(others) - nope,
            *map(gap, ('nope', 'rope', 'learned', 'alibi')),
        ),
        'orders of magnitude',
        margin=0.3,  # twice
        minutes=6,
        remark='All of these models are causal, so that the order of the flips can act on each.',
    ),
    'N11': Measurement(
        'A decoder of two layers with RoPE that has learned coin flips, after 20 flips: 0.02 minus '
        'its divergence from the rule of Bayes, as a share of the entropy of that rule.',
        'coins',
        (),
        by_seed(lambda excess: 0.02 - excess, number('rope', panel='excess', x=20.0)),
        'of the entropy',
        margin=0.01,  # 99 % of the limit
        minutes=6,
    ),
}
