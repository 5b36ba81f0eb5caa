"""Evaluates training runs and public checkpoints: a table here; results.json, results.csv and pictures beside the first run.

    python eval.py --run=runs/rope [--run='runs/rope | yarn(factor=4.0)'] [--config.eval.lengths=64,128] [--out=DIR]

A run is a directory that train.py wrote, a Hugging Face directory, or a .gguf file (results: runs/NAME/eval).
Several (repeat --run, or separate by commas) give one comparison. `--config.NAME=VALUE` changes a field of
the restored configs: any of eval and data, task, and `--config.extend='yarn(factor=4.0)'` for a context extension.
"""

import argparse
import pathlib
import re
import sys


def arguments(argv: list[str]) -> tuple[list[str], pathlib.Path | None, dict[str, str]]:
    """Runs, output directory or None, overrides."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser('eval.py', description=__doc__, formatter_class=raw)
    parser.add_argument('--run', action='append', required=True, metavar='DIR[,DIR...]', help='run directories')
    parser.add_argument('--out', type=pathlib.Path, metavar='DIR', help='output; default: eval/ in the first run')
    known, rest = parser.parse_known_args(argv)
    from posenc_jax.evaluation.overrides import read_overrides

    try:
        overrides = read_overrides(rest)
    except ValueError as error:
        parser.error(f'{error}; expected --run=DIR, --out=DIR or --config.NAME=VALUE')
    runs = [run.strip() for text in known.run for run in re.split(r',(?![^()]*\))', text) if run.strip()]
    if not runs:
        parser.error('--run names no directory')
    return runs, known.out, overrides


def main(argv: list[str]) -> int:
    runs, out, overrides = arguments(argv)
    from posenc_jax.evaluation.results import print_tables
    from posenc_jax.evaluation.run import evaluate, home_of

    try:
        results = evaluate(runs, overrides)
        print_tables(results)
        for path in results.write(out or home_of(runs[0]) / 'eval'):
            print(path)
    except (ValueError, OSError, ImportError) as error:
        print(f'eval.py: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
