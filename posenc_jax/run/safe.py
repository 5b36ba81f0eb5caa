"""Finds the steps of a run that are saved. This module imports the standard library alone, because
the watcher processes of training must start at once.
"""

import os
import pathlib

FOLDER = 'checkpoints'  # in the run directory


def finished_steps(run_dir: str | os.PathLike) -> list[int]:
    """Steps with a finished checkpoint, ascending; [] where there is no folder of checkpoints.

    Example:
      >>> finished_steps('nowhere')
      []
    """
    folder = pathlib.Path(run_dir, FOLDER)
    found = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(
        int(name)
        for name in found
        if name.isascii() and name.isdecimal() and name == str(int(name))
    )


def continues(directory: pathlib.Path, once: str) -> str:
    """The end of the line with which a failed run ends: which step is safe, and what the same
    command will do.

    Args:
      directory: the run directory.
      once: what must happen before the command is started again, e.g. 'once there is room'.
    """
    steps = finished_steps(directory)
    safe, then = (
        (f'step {steps[-1]} is safe', 'continues after it')
        if steps
        else ('no step is saved', 'begins anew')
    )
    return f'{safe}; {once}, the same command {then}'
