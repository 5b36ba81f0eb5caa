"""Encoders of places on the globe with three networks, on checkerboards: all places, and the poles.

Time:      36 minutes for 90 runs on one of two busy cores
Number:    seeds 0, 1, 2, beyond 60 degrees: harmonics .90, .91, .90 (linear), .96, .96, .97
           (siren), .96, .96, .96 (fcnet); the best other encoder .49, .92 and .93; see claim S6
Every encoder is trained with every head, with every learning rate; the rate with the best
validation accuracy, as a mean over the seeds, is tested. The tables and pictures have the accuracy
on the lattice, of all places (WORKDIR/all) and of those beyond 60 degrees of latitude
(WORKDIR/poles), by the number of support points. WORKDIR/results has all measurements with
their Wilson intervals. With `--support 20 50 100 200 400 --only geo_sh` the sweep finds the
resolution of spherical harmonics of 8 degrees: 180 / 8 = 22.5 degrees, the spacing of about 70
support points. Runs that are complete are not trained again.
Paper:     reproduced small, accuracy of all places and beyond 60 degrees: linear, harmonics .875
           and .957, grid .15, spherec+ .50, direct .08; siren, harmonics .94 and .96, direct .92
           and .82; fcnet, harmonics .95 and .97, grid .93, wrap .55, direct .45. The paper (arXiv
           2310.06743): harmonics and sines are good alone and best together, without artefacts at
           the poles.
"""

import argparse
import itertools
import pathlib

import numpy as np

from evidence.experiments.program import Program
from evidence.experiments.runs import ERRORS, Run, full_disk_in_one_line, refuse, train_runs
from evidence.experiments.tables import report
from posenc_jax.lab.evaluate.run import evaluate
from posenc_jax.lab.files.command import in_line
from posenc_jax.lab.train.metrics_file import FILE, read_lines

CONFIG = 'configs/globe.py'
ENCODERS = {
    'geo_sh': 'geo_sh(degrees=8)',
    'geo_grid': 'geo_grid()',
    'geo_wrap': 'geo_wrap()',
    'geo_direct': 'geo_direct()',
    'geo_spherecplus': 'geo_spherecplus()',
}
HEADS = {
    'linear': 'linear()',
    'siren': "siren(width=64, layers=2, preset='geo')",
    'fcnet': 'fcnet(width=64)',
}
STEPS = 500
PARTS = {  # folder -> protocol and title
    'all': ('accuracy', 'all places'),
    'poles': ('accuracy_poles', 'beyond 60 degrees'),
}


def fields_of(encoder: str, head: str, support: int) -> dict[str, object]:
    """The fields of the config of a run, without its rate and seed."""
    return {
        'task': f'checkerboard(support={support}, classes=16, samples=5000)',
        'features': ENCODERS[encoder],
        'field': HEADS[head],
        'train.steps': STEPS,
        'train.batch': 512,
        'train.eval_every': STEPS,  # validation at the last step, by which a rate is chosen
    }


def validation_accuracy(directory: str) -> float:
    """The last one of a run."""
    lines = read_lines(pathlib.Path(directory, FILE))
    name = 'validation_accuracy'
    return [line[name] for line in lines if name in line][-1]


def run(options: argparse.Namespace) -> None:
    """Trains everything, and tests what has the best rate."""
    variants = list(itertools.product(options.heads, options.only, options.support))
    runs = {
        (head, name, support, rate, seed): Run(
            options.workdir / f'{head}_{name}_{support}_{rate:g}_{seed}',
            CONFIG,
            {**fields_of(name, head, support), 'train.lr': rate, 'seed': seed},
            options.set,
        )
        for head, name, support in variants
        for rate in options.rates
        for seed in options.seeds
    }
    directories, chosen = train_runs(runs), {}
    for variant in variants:
        score = lambda rate, variant=variant: np.mean(
            [validation_accuracy(directories[*variant, rate, seed]) for seed in options.seeds]
        )
        rate = max(options.rates, key=score)
        chosen |= {(*variant, seed): directories[*variant, rate, seed] for seed in options.seeds}
    try:
        found = evaluate(list(chosen.values()), {'eval.lengths': (5000,)})
    except ERRORS as error:
        refuse(in_line(error))
    with full_disk_in_one_line():
        found.write_numbers(options.workdir / 'results')
    for part, (protocol, title) in PARTS.items():
        rows = [
            (head, name, support, seed, measurement.value)
            for (head, name, support, seed), run in zip(chosen, found.runs, strict=True)
            for measurement in run.measurements
            if measurement.protocol == protocol
        ]
        report(rows, options.workdir / part, title=title, x='support points', value='accuracy')


PROGRAM = Program(
    __name__,
    __doc__,
    run,
    choose={'heads': HEADS, 'only': ENCODERS},
    options={'support': [100], 'rates': [2e-3, 1e-2], 'set': []},
)
