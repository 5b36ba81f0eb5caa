"""What sweeps share: training a run unless it is there already, and one evaluation of many."""

import pathlib
import subprocess
import sys
from collections.abc import Iterable, Mapping

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
