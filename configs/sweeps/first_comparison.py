"""The first comparison: nine ways to encode positions, one corpus, several seeds, perplexity by length with four protocols.

Command:   python -m configs.sweeps.first_comparison [--seeds 0 1] [--workdir runs/first_comparison]
Time:      see docs/results/first_comparison.md (two CPU cores)
Afterwards the evaluation of all runs is in WORKDIR/comparison (table, results.json, results.csv, pictures).
Runs that are complete are not trained again, so the sweep may be interrupted and started again.
"""

import argparse
import pathlib
import subprocess
import sys

ENCODINGS = {
    'nope': 'nope()',
    'sinusoidal': 'sinusoidal()',
    # Token vectors have unit variance here; std=1.0 gives positions their weight in GPT-2, where both tables start at 0.02.
    'learned_absolute': 'learned_absolute(max_len=128, std=1.0, overflow="clamp")',
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
            if not (run / 'done').exists():
                command = [sys.executable, 'train.py', f'--config={arguments.config}', f'--config.encoding={encoding}']
                command += [f'--config.seed={seed}', f'--config.workdir={arguments.workdir}', f'--config.name={run.name}']
                command += ['--config.eval.at_end=False', *(f'--config.{field}' for field in arguments.set)]
                subprocess.run(command, check=True)
                (run / 'done').touch()
            runs.append(str(run))
            if name in EXTENDED:
                runs.append(f'{run} | {EXTENDED[name]}')
    command = [sys.executable, 'eval.py', *(f'--run={run}' for run in runs)]
    subprocess.run([*command, f'--out={pathlib.Path(arguments.workdir, "comparison")}'], check=True)


if __name__ == '__main__':
    main()
