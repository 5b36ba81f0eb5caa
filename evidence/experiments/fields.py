"""Fields on small pictures: activations over steps, networks of equal size, bits against values.

Time:      4 to 10 s of processor time a run of 'activations'; see docs/claims.md for the others
Number:    'activations', seeds 0, 1, 2: first 40 dB of SPDER at step 50 (rate 1e-4), of SIREN at
           150, 150, 170 (1e-4) and 40 (1e-3), of random features at 80, 80, 70 (1e-3). Best of 250
           steps: 122, 121, 123 dB, then 64, 64, 69 and 80, 101, 77 at their better rate; see
           docs/results/space.md. 'bits8': no wrong bit from step 40 on by bits, from 120, 490 and
           130 by values (rate 1e-3). The other groups: docs/results/space.md.
'activations' fits a picture of 48 x 48 pixels with the damped sines of SPDER, with SIREN, and with
rectified linear units on random Fourier features, on bands of frequencies and on the coordinates
themselves, at a constant learning rate. 'equal' gives 2000 parameters to each of several networks,
and 'codes' gives 500 to a random hypernetwork and to a SIREN. They report the PSNR of the fitted
pixels over the steps and the first steps with 40 and with 60 dB. 'bits8' and 'bits16' fit 16 x 16
pixels of so many bits, by their bits and by their values, and report the rate of wrong bits over
the steps and the first step without any. Every variant is trained with every learning rate. The
curves are those with the best last value, as a mean over the seeds; first steps are those of all
rates, and the step behind the last one where a run never comes so far. Results:
WORKDIR/GROUP_results and WORKDIR/GROUP_first. Runs that are complete are not trained again.
Paper:     SPDER (arXiv 2306.15242): ten times faster than SIREN on pictures. Bit planes (arXiv
           2502.21001): 8 and 16 bits without loss.
"""

import argparse
import math
import pathlib

import numpy as np

from evidence.experiments.program import Program
from evidence.experiments.runs import Run, train_runs
from evidence.experiments.tables import report
from posenc_jax.lab.model.losses import psnr
from posenc_jax.lab.train.metrics_file import FILE, read_lines

CONFIG = 'configs/field.py'
PICTURE = {'task': "picture('synthetic')", 'train.length': 48, 'train.batch': 48**2}
# Speed is compared at a constant rate, as in the papers; a rate that falls to the end of so short a
# run costs SIREN 16 dB.
CONSTANT = {'train.warmup': 0, 'train.end_lr_fraction': 1.0}
LOGGED = {'train.log_every': 10, 'train.save_every': 1000, 'train.eval_every': 0}
WIDE = {'train.steps': 250, **CONSTANT, **LOGGED}
SMALL = {'train.steps': 500, **LOGGED}
GOOD = (40, 60)  # dB, of which the first steps are reported
SHOWN = 10  # steps in a table
LAYERS = 'width=128, layers=3'
LEARNED = 'recombiner_lpe(shape=(48, 48), latent=6, hidden=4, features=4)'


def bits(count: int) -> dict[str, dict[str, object]]:
    """The variants that store whole numbers of so many bits."""
    common = {'train.length': 16, 'train.eval_every': 10, 'train.save_every': 1000}
    common['train.steps'] = 1000 if count == 8 else 2000
    planes = {'task': f"bit_planes(picture('synthetic'), bits={count})"}
    values = {'task': f"picture('synthetic', bits={count})"}
    return {
        'bit_plane_inr': {
            **common,
            **planes,
            'field': 'bit_plane_inr(siren(width=64, layers=3))',
            'train.batch': 256 * count,
        },
        'values': {**common, **values, 'field': 'siren(width=64, layers=3)', 'train.batch': 256},
    }


GROUPS = {
    'activations': {
        name: {**PICTURE, **WIDE, 'field': field, 'features': features}
        for name, field, features in (
            ('spder', f'spder({LAYERS})', ''),
            ('siren', f'siren({LAYERS})', ''),
            ('random', f'mlp({LAYERS})', "fourier_features('random', features=128, scale=5.0)"),
            ('bands', f'mlp({LAYERS})', "fourier_features('nerf', bands=5)"),
            ('relu', f'mlp({LAYERS})', ''),
        )
    },
    'equal': {
        name: {**PICTURE, **SMALL, 'field': field, 'features': features}
        for name, field, features in (
            ('siren', 'siren(width=30, layers=3)', ''),
            ('relu', 'mlp(width=30, layers=3)', ''),
            ('spder', 'spder(width=30, layers=3)', ''),
            ('bands', 'mlp(width=26, layers=3)', "fourier_features('nerf', bands=5)"),
            ('pins', 'pins(width=15, levels=4, bands=1)', ''),
            ('poly_inr', 'poly_inr(width=9, levels=4, style=8)', ''),
            ('recombiner_lpe', 'siren(width=23, layers=2)', LEARNED),
        )
    },
    'codes': {
        name: {**PICTURE, **SMALL, 'field': field}
        for name, field in (
            ('doh', 'doh(siren(width=64, layers=3), latent=500)'),
            ('siren', 'siren(width=14, layers=3)'),
        )
    },
    'bits8': bits(8),
    'bits16': bits(16),
}


def curve(directory: str, whole_numbers: bool) -> dict[int, float]:
    """Step -> PSNR of the training pixels, or rate of wrong bits."""
    lines = read_lines(pathlib.Path(directory, FILE))
    if whole_numbers:
        name = 'validation_bit_errors'
        return {line['step']: line[name] for line in lines if name in line}
    # Every batch has all pixels, so the loss of a step is that of the picture.
    return {line['step']: psnr(line['loss']) for line in lines if 'loss' in line}


def _report(group, chosen, directories, options) -> None:
    whole, rows = group.startswith('bits'), []
    first = []
    sign = 1 if whole else -1  # few wrong bits, much PSNR
    for name in chosen:
        curves = {
            rate: [curve(directories[name, rate, seed], whole) for seed in options.seeds]
            for rate in options.rates
        }
        last = {rate: np.mean([own[max(own)] for own in found]) for rate, found in curves.items()}
        best = min(last, key=lambda rate: sign * last[rate] if math.isfinite(last[rate]) else 1e9)
        for seed, own in zip(options.seeds, curves[best]):
            shown = sorted(own)[:: -max(1, len(own) // SHOWN)]  # the last one is among them
            rows += [(group, f'{name}, lr {best:g}', step, seed, own[step]) for step in shown]
        goals = (
            {'without a wrong bit': lambda value: value == 0}
            if whole
            else {f'{good} dB': lambda value, good=good: value >= good for good in GOOD}
        )
        for goal, reached in goals.items():
            for rate, found in curves.items():
                for seed, own in zip(options.seeds, found):
                    steps = [step for step, value in own.items() if reached(value)]
                    first.append((goal, name, rate, seed, min(steps, default=max(own) + 1)))
    out = options.workdir / f'{group}_results'
    value = 'rate of wrong bits' if whole else 'PSNR, dB'
    report(rows, out, title=f'fields, {group}', x='step', value=value)
    out = options.workdir / f'{group}_first'
    report(first, out, title='first steps', x='learning rate', value='step')


def run(options: argparse.Namespace) -> None:
    """Trains and reports all groups."""
    for group in options.groups:
        chosen = {name: own for name, own in GROUPS[group].items() if name in options.only}
        runs = {
            (name, rate, seed): Run(
                options.workdir / f'{group}_{name}_{rate:g}_{seed}',
                CONFIG,
                {**own, 'train.lr': rate, 'seed': seed},
                options.set,
            )
            for name, own in chosen.items()
            for rate in options.rates
            for seed in options.seeds
        }
        if runs:
            _report(group, chosen, train_runs(runs), options)


PROGRAM = Program(
    __name__,
    __doc__,
    run,
    choose={
        'groups': GROUPS, 'only': sorted({name for own in GROUPS.values() for name in own}),
    },
    options={'rates': [1e-4, 1e-3], 'set': []},
)  # fmt: skip
