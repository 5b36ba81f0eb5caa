"""Measurements of what smaller caches and parallel contexts cost in quality."""

import statistics

from configs.claims.claim import Measurement, Results

HALF = 0.5  # of the heads stream


def streaming(results: Results) -> dict[int, float]:
    """With half of the heads streaming: trained minus drawn gates, or minus the loss of accuracy
    against the full cache where that is above 0.05.
    """
    full = results.values('trained gates', x=0.0)
    trained = results.values('trained gates', x=HALF)
    found = {}
    for seed, value in trained.items():
        drawn = [
            row['value']
            for row in results.rows
            if (row['name'], row['x'], row['seed']) == ('random gates', HALF, seed)
        ]
        lost = full[seed] - value
        found[seed] = value - statistics.fmean(drawn) if lost <= 0.05 else -lost
    return found


MEASUREMENTS = {
    'X2': Measurement(
        'Passkeys in 64 tokens, 4 layers of 4 heads, half of which stream: the accuracy with '
        'trained gates minus that with drawn gates, as a mean of four draws; where trained gates '
        'lose more than 0.05 against the full cache, minus that loss.',
        'duo_attention',
        ('--set', 'mesh.cpu_devices=1'),
        streaming,
        'of exact match',
        margin=0.05,
        minutes=4,
    )
}
