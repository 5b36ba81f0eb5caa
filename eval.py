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
    overrides = {}
    for argument in rest:
        match = re.fullmatch(r'--config\.([\w.]+)=(.*)', argument, re.DOTALL)
        if match is None:
            parser.error(f'cannot read {argument!r}; expected --run=DIR, --out=DIR or --config.NAME=VALUE')
        overrides[match[1]] = match[2]
    runs = [run.strip() for text in known.run for run in re.split(r',(?![^()]*\))', text) if run.strip()]
    if not runs:
        parser.error('--run names no directory')
    return runs, known.out, overrides


def default_output(run: str) -> pathlib.Path:
    from posenc_jax.model.pretrained import is_pretrained

    path = pathlib.Path(run.partition('|')[0].strip())
    return pathlib.Path('runs', path.stem, 'eval') if is_pretrained(path) else path / 'eval'


def main(argv: list[str]) -> int:
    runs, out, overrides = arguments(argv)
    from posenc_jax.evaluation.results import print_tables
    from posenc_jax.evaluation.run import evaluate

    try:
        results = evaluate(runs, overrides)
        print_tables(results)
        for path in results.write(out or default_output(runs[0])):
            print(path)
    except (ValueError, OSError, ImportError) as error:
        print(f'eval.py: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
