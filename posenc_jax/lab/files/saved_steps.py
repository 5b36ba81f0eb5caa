"""Finds the steps of a run that are saved. This module imports the standard library alone, because
the watcher processes of training must start at once.
"""

import pathlib

FOLDER = 'checkpoints'  # in the run directory
COMMITTED = 'commit_success.txt'  # in a checkpoint that is in a bucket
# Run directory -> its finished steps, as they were found last. A bucket may be out of reach later.
_found: dict[str, list[int]] = {}


def finished_steps(run_dir: pathlib.Path) -> list[int]:
    """Steps with a finished checkpoint, ascending; [] where there is no folder of checkpoints."""
    steps = sorted(step for step, finished in saved_steps(run_dir / FOLDER).items() if finished)
    _found[str(run_dir)] = steps
    return steps


def saved_steps(folder: pathlib.Path) -> dict[int, bool]:
    """The steps that a folder of checkpoints has -> whether the checkpoint is finished.

    A local folder gets its name when it is finished. A bucket cannot rename, so there orbax writes
    an object at the end.
    """
    local = isinstance(folder, pathlib.Path)
    paths = (
        [path for path in folder.iterdir() if not local or path.is_dir()] if folder.is_dir() else []
    )
    return {
        int(path.name): local or (path / COMMITTED).exists()
        for path in paths
        if path.name.isascii() and path.name.isdecimal() and path.name == str(int(path.name))
    }


def continues(directory: pathlib.Path, once: str) -> str:
    """The end of the line with which a failed run ends: which step is safe, and what the same
    command will do.

    Args:
      directory: the run directory.
      once: what must happen before the command is started again, e.g. 'once there is room'.
    """
    try:
        steps = finished_steps(directory)
    except Exception:  # every library of buckets has errors of its own
        known = _found.get(str(directory))
        safe = f'step {known[-1]} is safe, later ones may be' if known else 'saved steps are safe'
        return f'{safe}; {once}, the same command continues'
    safe, then = (
        (f'step {steps[-1]} is safe', 'continues after it')
        if steps
        else ('no step is saved', 'begins anew')
    )
    return f'{safe}; {once}, the same command {then}'
