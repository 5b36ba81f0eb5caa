"""What sweeps share: training a run unless it is there already, and one evaluation of many."""

import pathlib
import subprocess
import sys
from collections.abc import Iterable, Mapping

from posenc_jax.core.command import Parser
from posenc_jax.training import config as configs
from posenc_jax.training.checkpoint import FOLDER


def complete(run: pathlib.Path) -> bool:
    """Whether the newest checkpoint of a run is that of its last step."""
    if not (run / configs.FILE).is_file():
        return False
    saved = [int(path.name) for path in run.glob(f'{FOLDER}/*') if path.name.isdecimal()]  # finished ones alone
    return max(saved, default=0) == configs.from_json(run / configs.FILE).train.steps


def train_run(run: pathlib.Path, config: str, fields: Mapping[str, object], more: Iterable[str] = ()) -> str:
    """Trains a run without evaluating it, unless it is complete; ends the program where it is stopped before its last step.

    Args:
      run: its directory.
      config: file.
      fields: of the config.
      more: further fields, as 'NAME=VALUE'.
    """
    if not complete(run):
        given = {**fields, 'workdir': run.parent, 'name': run.name, 'eval.at_end': False}
        settings = [*(f'{name}={value}' for name, value in given.items()), *more]
        subprocess.run([sys.executable, 'train.py', f'--config={config}', *(f'--config.{s}' for s in settings)], check=True)
        if not complete(run):
            sys.exit(f'{run} was stopped before its last step; the same command continues')
    return str(run)


def evaluate_runs(runs: Iterable[str], out: pathlib.Path, settings: Iterable[str] = ()) -> None:
    """One comparison of these runs in `out`."""
    subprocess.run(
        [sys.executable, 'eval.py', *(f'--run={run}' for run in runs), *(f'--config.{s}' for s in settings), f'--out={out}'],
        check=True,
    )


def compare(
    documentation: str,
    encodings: Mapping[str, str | Mapping[str, object]],
    extended: Iterable[tuple[str, str]] = (),
    *,
    workdir: str,
    config: str = 'configs/quickstart.py',
    settings: Iterable[str] = (),
    evaluation: Mapping[str, Iterable[str]] = {'comparison': ()},
) -> None:
    """The command of a sweep: trains every encoding with every seed and evaluates all of them.

    Args:
      documentation: of the sweep; the command shows its first line.
      encodings: name of a run -> encoding string, or all the fields of the config in which it differs from the others.
      extended: (name of a run, extension), evaluated besides.
      workdir, config: defaults of the options.
      settings: fields of the config for training, as 'NAME=VALUE'.
      evaluation: folder in the working directory -> fields of an evaluation.
    """
    parser = Parser(description=documentation.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--workdir', type=pathlib.Path, default=workdir)
    parser.add_argument('--config', default=config)
    parser.add_argument('--only', nargs='+', choices=sorted(encodings), metavar='NAME', help='train and evaluate these alone')
    parser.add_argument('--set', nargs='*', default=[], metavar='FIELD=VALUE', help='more config fields, e.g. train.steps=200')
    arguments = parser.parse_args()
    runs = []
    for seed in arguments.seeds:
        for name in arguments.only or encodings:
            run = pathlib.Path(arguments.workdir, f'{name}_{seed}')
            own = encodings[name]
            fields = {**({'encoding': own} if isinstance(own, str) else own), 'seed': seed}
            runs.append(train_run(run, arguments.config, fields, [*settings, *arguments.set]))
            runs += [f'{run} | {extension}' for which, extension in extended if which == name]
    for folder, fields in evaluation.items():
        evaluate_runs(runs, pathlib.Path(arguments.workdir, folder), fields)
