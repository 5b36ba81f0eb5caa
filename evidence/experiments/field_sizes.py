"""Polynomial fields and fields of codes on a small picture, in three sizes and without codes.

Command:   python -m evidence.experiments.field_sizes [--seeds 0 1 2] [--workdir runs/field_sizes]
Measured:  the PSNR of a picture of 48 x 48 pixels after 500 steps, of `poly_inr` and of rectified
           linear units with about 2000, 30,000 and 140,000 parameters at two rates, and of a SIREN
           of 645 parameters with the codes of `recombiner_lpe` and without them.
Time:      ten minutes of processor time
Number:    docs/results/contrary.md, claims S9 and S12
Results:   WORKDIR/comparison
"""

from evidence.experiments.fields import LEARNED, PICTURE, SMALL
from evidence.experiments.runs import Sweep

SIZES = {
    2: ('mlp(width=30, layers=3)', 'poly_inr(width=9, levels=4, style=8)'),
    30: ('mlp(width=121, layers=3)', 'poly_inr(width=44, levels=4, style=8)'),
    140: ('mlp(width=263, layers=3)', 'poly_inr(width=100, levels=4, style=8)'),
}
RATES = (1e-3, 1e-2)
CODES = {'codes': LEARNED, 'no_codes': ''}
ENCODINGS = {
    f'{name}_{size}k_{rate:g}': {**PICTURE, **SMALL, 'field': field, 'train.lr': rate}
    for size, fields in SIZES.items()
    for name, field in zip(('relu', 'poly_inr'), fields)
    for rate in RATES
} | {
    name: {**PICTURE, **SMALL, 'field': 'siren(width=23, layers=2)', 'features': features}
    | {'train.lr': 1e-2}
    for name, features in CODES.items()
}
SWEEP = Sweep(
    __doc__,
    ENCODINGS,
    workdir='runs/field_sizes',
    config='configs/field.py',
    settings=('mesh.cpu_devices=1',),
    evaluation={'comparison': ('eval.lengths=48',)},
)

if __name__ == '__main__':
    SWEEP.main()
