"""The first comparison: nine ways to encode positions, one corpus, several seeds, perplexity by length with four protocols.

Command:   python -m configs.sweeps.first_comparison [--seeds 0 1] [--workdir runs/first_comparison]
Time:      see docs/results/first_comparison.md (two CPU cores)
Afterwards the evaluation of all runs is in WORKDIR/comparison (table, results.json, results.csv, pictures).
Runs whose last step is saved are not trained again, so the sweep may be interrupted and started again.
"""

import argparse
import pathlib
import subprocess
import sys

from posenc_jax.training import config as configs
from posenc_jax.training.checkpoint import FOLDER

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


def complete(run: pathlib.Path) -> bool:
    """Whether the newest checkpoint of a run is that of its last step."""
    if not (run / configs.FILE).is_file():
        return False
    saved = [int(path.name) for path in run.glob(f'{FOLDER}/*') if path.name.isdecimal()]  # finished ones alone
    return max(saved, default=0) == configs.from_json(run / configs.FILE).train.steps


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
            if not complete(run):
                command = [sys.executable, 'train.py', f'--config={arguments.config}', f'--config.encoding={encoding}']
                command += [f'--config.seed={seed}', f'--config.workdir={arguments.workdir}', f'--config.name={run.name}']
                command += ['--config.eval.at_end=False', *(f'--config.{field}' for field in arguments.set)]
                subprocess.run(command, check=True)
                if not complete(run):
                    sys.exit(f'{run} was stopped before its last step; the same command continues')
            runs.append(str(run))
            if name in EXTENDED:
                runs.append(f'{run} | {EXTENDED[name]}')
    command = [sys.executable, 'eval.py', *(f'--run={run}' for run in runs)]
    subprocess.run([*command, f'--out={pathlib.Path(arguments.workdir, "comparison")}'], check=True)


if __name__ == '__main__':
    main()
