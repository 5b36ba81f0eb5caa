"""Measurements of rotary encodings that models of text are trained with from the start."""

import numpy as np

from evidence.claims.claim import SAME, Measure, Measurement, Results, below, by_seed, lead_in_nats
from evidence.experiments.rotary_text import EXTENSIONS, FAR

TRAINED = 64


def agreement(results: Results) -> dict[int, float]:
    """Rank correlation, over the extensions, of low losses and large shares of slow frequencies."""
    nats, shares = [], []
    for extension in EXTENSIONS:
        run = f'rope | {extension}' if extension else 'rope'
        nats.append(results.values(run, 'nll', folder='comparison', length=FAR))
        where = {'folder': 'planes', 'panel': 'share of the slower half'}
        shares.append(results.values(extension or 'none', **where))
    ranks = lambda values: np.argsort(np.argsort(values))
    return {
        seed: float(
            np.corrcoef(ranks([-own[seed] for own in nats]), ranks([own[seed] for own in shares]))[
                0, 1
            ]
        )
        for seed in sorted(nats[0])
    }


def measurement(
    test: str, measure: Measure, margin: float, remark: str = '', unit: str = 'nats a byte'
) -> Measurement:
    """A measurement by the sweep of rotary encodings."""
    return Measurement(test, 'rotary_text', (), measure, unit, margin, minutes=95, remark=remark)


EXTENDED = tuple(f'rope | {rule}(factor=4.0)' for rule in ('pi', 'ntk_aware', 'yarn'))
MEASUREMENTS = {
    'R1': measurement(
        'Text in windows of 64 bytes and RoPE of base 100, whose slowest frequency turns by 0.85 '
        'radians in a window: nats that a model without the slowest quarter of the frequencies '
        'needs less than one with all.',
        below('p_rope_100', 'rope_100', folder='comparison', length=TRAINED),
        margin=0.005,  # what the paper gains for its largest model
    ),
    'R19': measurement(
        'Text in windows of 64 and of 256 bytes after training with 64: nats that CARoPE needs '
        'less than RoPE, the less of the two lengths.',
        by_seed(
            lambda near, far: min(near, far),
            *(
                below('carope', 'rope', folder='comparison', length=length)
                for length in (TRAINED, FAR)
            ),
        ),
        margin=0.01,
    ),
    'R21': Measurement(
        'The same bytes of text in windows of 512 after training with 128, without tuning: nats '
        'that TAPA, with phases of 0.03 times those of the paper, needs less than RoPE with '
        'PI, the NTK-aware rule, YaRN or none, the best of them.',
        'text',
        ('phases',),
        lead_in_nats('tapa', 'rope', *EXTENDED, length=512, **SAME),
        'nats a byte',
        margin=0.02,
        minutes=45,
        remark='With the phases of the paper TAPA learns too slowly in models of this size. The '
        'factor is the better of 0.03 and 0.1 on validation text. Within 128 bytes TAPA is .02 to '
        '.11 nats behind RoPE.',
    ),
    'R32': measurement(
        'RoPE that was trained at 64 bytes, with six extensions and none, in windows of 256 bytes: '
        'the rank correlation of a low loss with the share of the slower half of the frequencies '
        'in the logits that attention weighs.',
        agreement,
        margin=0.3,
        unit='of correlation',
    ),
}
