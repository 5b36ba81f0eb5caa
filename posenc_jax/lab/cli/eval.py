"""Evaluates training runs and public checkpoints. Prints tables, and writes results.json,
results.csv, for text documents.csv, pictures, and pictures.md, which says what draws each of them
again, to the folder eval of the run.

    python eval.py --run=runs/rope [--run='runs/rope | yarn(factor=4.0)']
    [--config.eval.lengths=64,128] [--out=DIR]
    python eval.py --also=DIR

`posenc-eval` is this program where pip installed the package.
A run is a directory that train.py wrote, a Hugging Face directory, or a .gguf file (whose results
go to runs/NAME-PLACE/eval). Several runs (repeat --run, or separate them by commas) give one
comparison; --also=DIR adds the results that an earlier call wrote to DIR. A comparison has a folder
of its own in the folder comparisons of the first run. Without --run, --also=DIR prints the tables
of DIR and draws its pictures again. `--config.NAME=VALUE` changes a field of the
configs: every field of eval, data and mesh, the task, extend, which is a context extension
(`--config.extend='yarn(factor=4.0)'`), and how the model is computed
(`--config.model.implementation=blocked`). `--help` lists them. Python files that a run brings are
executed only with --trust-imports.
Several processes evaluate together if each is started with --coordinator=HOST:PORT --processes=N
--process_id=I; process 0 writes.
"""

import pathlib
import re
import shlex
import sys

from posenc_jax.base import interrupts
from posenc_jax.base.programs import program
from posenc_jax.lab.files import paths


def arguments(
    argv: list[str] | None,
) -> tuple[list[str], pathlib.Path | None, list[pathlib.Path], dict[str, str], tuple, bool]:
    """The runs, the output directory or None, directories to compare with, overrides, the arguments
    of `together`, and whether code that the runs bring may be executed.
    """
    from posenc_jax.lab.config.listing import field_help
    from posenc_jax.lab.config.overrides import CHANGEABLE
    from posenc_jax.lab.config.run_parser import RunParser

    parser = RunParser(program('eval.py'), description=__doc__, epilog=field_help(CHANGEABLE))
    parser.add_argument(
        '--run', action='append', default=[], metavar='DIR[,DIR...]', help='runs to evaluate'
    )
    parser.add_argument(
        '--out',
        type=paths.path,
        metavar='DIR',
        help='output; default: eval/ in the run, comparisons/NAME/ in the first of several',
    )
    parser.add_argument(
        '--also',
        action='append',
        default=[],
        type=paths.path,
        metavar='DIR',
        help='output of an earlier evaluation, to compare with',
    )
    known, processes, overrides = parser.read(argv)
    runs = [run.strip() for text in known.run for run in _split(text) if run.strip()]
    if not runs and (known.run or not known.also):
        parser.error('--run is empty; expected a run directory or a public checkpoint')
    if not runs and overrides:
        parser.error(
            f'without --run nothing is evaluated, so --config.{next(iter(overrides))} is not read'
        )
    return runs, known.out, known.also, overrides, processes, known.trust_imports


def _split(text: str) -> list[str]:
    """Splits a text at the commas that are outside of parentheses."""
    depth, parts = 0, ['']
    for piece in re.split(r'([(),])', text):
        depth += {'(': 1, ')': -1}.get(piece, 0)
        if piece == ',' and depth <= 0:
            parts.append('')
        else:
            parts[-1] += piece
    return parts


def main(argv: list[str] | None = None) -> int:
    runs, out, earlier, overrides, processes, trusted = arguments(argv)
    from posenc_jax.lab.cluster.cluster import ERRORS, failed, together
    from posenc_jax.lab.evaluate.redraw import PAGE, command, evaluator
    from posenc_jax.lab.evaluate.results import print_tables, read
    from posenc_jax.lab.evaluate.run import evaluate_runs, prepared
    from posenc_jax.lab.files.checkpoint_files import check_folder
    from posenc_jax.lab.runs.prepare import results_folder

    kept = 0

    def keep(found):
        nonlocal kept
        try:
            found.write_numbers(out)
        except OSError:
            print_tables(found)
            raise
        kept += 1

    def stopping():
        safe = (
            f'the results of {kept} of {len(runs)} runs are in {out}'
            if kept
            else 'there are no results yet'
        )
        return f'stopping; {safe}'

    try:
        out = out or (results_folder(runs, earlier) if runs else earlier[0])
        also = [run for directory in earlier for run in read(directory)]
        with interrupts.announced(stopping), together(*processes) as first:
            asked = prepared(runs, overrides, trusted)
            check_folder(out)  # after `prepared`, which says that a run does not exist
            # Results are written after every run, so that an interrupted evaluation loses none.
            after = keep if first else lambda found: None
            results = evaluate_runs(asked, also=also, after=after)
            if first:
                print_tables(results)
                alone = not runs and len(earlier) == 1  # these numbers are there already
                asked = f'{evaluator()} {shlex.join(sys.argv[1:] if argv is None else argv)}'
                paths = results.write_pictures(out) if alone else results.write(out, asked)
                for path in paths:
                    print(path)
                if any(path.suffix == '.png' for path in paths):
                    print(f'to draw the pictures again: {command(out)}; see {out / PAGE}')
    except ERRORS as error:
        return failed('eval.py', error)
    return 0


if __name__ == '__main__':
    sys.exit(interrupts.run('eval.py', main))
