"""Analyses of a trained model or of an encoding; each writes its numbers and a picture.

    python -m posenc_jax.lab.analyse ANALYSIS --run=RUN|--runs='DIR/*'
        [--length=N] [--batches=N] [--inputs=text|random] [--out=DIR]
    python -m posenc_jax.lab.analyse receptive_field --encoding='alibi()' [--encoding=...]
    python -m posenc_jax.lab.analyse pi_bound [--out=DIR]

RUN is a training run or a public checkpoint; 'RUN | EXTENSION' applies a context extension to it.
The analyses read the test split of its text, or with --inputs=random random ids, which any run over
ids can read. receptive_field also reads the examples of a task. `--config.NAME=VALUE` changes a
field of the config, as in eval.py. An analysis may print a table, and writes its numbers, NAME.json
or NAME.npz, and NAME.png in DIR (default: analysis/ in the directory of the run; runs/analysis
without a run).
"""

import argparse
import pathlib
import sys

from posenc_jax.base import interrupts
from posenc_jax.base.programs import program
from posenc_jax.lab import analyse
from posenc_jax.lab.analyse.subjects import folder_of
from posenc_jax.lab.files import paths
from posenc_jax.lab.files.command import Parser, in_line

# By their keys, from the modules of this folder that declare one.
ANALYSES = {
    module.ANALYSIS.key: module.ANALYSIS
    for name in analyse.__all__
    if hasattr(module := getattr(analyse, name), 'ANALYSIS')
}


def main(argv: list[str] | None = None) -> int:
    known, rest = _parser().parse_known_args(argv)
    try:
        for path in run(known, rest):
            print(path)
    except (ValueError, OSError, ImportError) as error:
        print(f'{program("posenc_jax.lab.analyse")}: {in_line(error)}', file=sys.stderr)
        return 2
    return 0


def _parser() -> Parser:
    listed = '\n'.join(f'  {one.key}: {one.says}' for one in ANALYSES.values())
    parser = Parser(program('posenc_jax.lab.analyse'), description=f'{__doc__}\n{listed}')
    parser.add_argument('analysis', choices=tuple(ANALYSES))
    parser.add_argument('--run', metavar='RUN')
    runs = 'runs to compare; receptive_field averages runs of one encoding'
    parser.add_argument('--runs', metavar='PATTERN', help=runs)
    length = 'tokens of a window; default: the trained length'
    parser.add_argument('--length', type=int, default=0, metavar='N', help=length)
    batches = 'how many windows are read; the default depends on the analysis'
    parser.add_argument('--batches', type=int, help=batches)
    parser.add_argument('--inputs', default='text', help="'text' of the run or 'random' ids")
    parser.add_argument('--out', type=paths.path, metavar='DIR')
    users: dict[str, list[str]] = {}
    options = {}
    for one in ANALYSES.values():
        for name, settings in one.options.items():
            users.setdefault(name, []).append(one.key)
            options[name] = settings
    for name, settings in options.items():
        says = f'of {" and ".join(users[name])}: {settings["help"]}'
        parser.add_argument(f'--{name}', **{**settings, 'help': says})
    parser.add_imports(of_runs=True)
    return parser


def run(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    """Prints the reports of an analysis, writes their files, and returns the paths."""
    analysis = ANALYSES[known.analysis]
    known.batches = analysis.batches if known.batches is None else known.batches
    written = []
    for report in analysis.reports(known, rest):
        if text := report.text():
            print(text, flush=True)
        written += report.write(folder_of(known))
    return written


if __name__ == '__main__':
    sys.exit(interrupts.run('posenc_jax.lab.analyse', main))
