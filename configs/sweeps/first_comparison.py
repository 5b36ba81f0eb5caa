"""The first comparison: nine ways to encode positions, one corpus, several seeds, perplexity by length with four protocols.

Command:   python -m configs.sweeps.first_comparison [--seeds 0 1] [--workdir runs/first_comparison]
Time:      see docs/results/first_comparison.md (two CPU cores)
Afterwards the evaluation of all runs is in WORKDIR/comparison (table, results.json, results.csv, pictures).
Runs whose last step is saved are not trained again, so the sweep may be interrupted and started again.
"""

import argparse
import pathlib

from configs.sweeps.runs import evaluate_runs, train_run

ENCODINGS = {
    'nope': 'nope()',
    'sinusoidal': 'sinusoidal()',
    'learned_absolute': 'learned_absolute(max_len=128, overflow="clamp")',
    'rope': 'rope()',
    'alibi': 'alibi()',
    't5_rpe': 't5_rpe()',
    'kerple': 'kerple()',
    'fire': 'fire()',
}
EXTENDED = {'rope': 'yarn(factor=8.0)'}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--workdir', default='runs/first_comparison')
    parser.add_argument('--config', default='configs/quickstart.py')
    parser.add_argument('--set', nargs='*', default=[], metavar='FIELD=VALUE', help='more config fields, e.g. train.steps=200')
    arguments = parser.parse_args()
    runs = []
    for seed in arguments.seeds:
        for name, encoding in ENCODINGS.items():
            run = pathlib.Path(arguments.workdir, f'{name}_{seed}')
            runs.append(train_run(run, arguments.config, {'encoding': encoding, 'seed': seed}, arguments.set))
            if name in EXTENDED:
                runs.append(f'{run} | {EXTENDED[name]}')
    evaluate_runs(runs, pathlib.Path(arguments.workdir, 'comparison'))


if __name__ == '__main__':
    main()
