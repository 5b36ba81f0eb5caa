"""Measurements of what models know of positions."""

import math

from configs.claims.claim import Measurement, Results, above, by_seed, number

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


MEASUREMENTS = {
    'N2': measurement(
        'Trained decoders of 4 layers without positions: R2 of a ridge probe of the position '
        'behind the best layer, on texts that the probe has not read.',
        largest(PROBE, 'nope'),
        'of the variance',
        0.15,
    ),
    'N3': measurement(
        'Trained decoders of 4 layers without positions: minus the slope of the log variance of '
        'the first layer of attention on the log of the position.',
        by_seed(lambda slope: -slope, number('nope', panel=SLOPE, x=1.0)),
        'of slope',
        0.2,
    ),
    'N4': measurement(
        'Trained decoders of 4 layers without positions: the adjacency score behind the best layer '
        'minus 0.5, which is chance.',
        by_seed(lambda score: score - 0.5, largest(ADJACENT, 'nope')),
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
}
