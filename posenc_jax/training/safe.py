"""Which step of a run is safe. Imports nothing but the standard library, for processes that must start at once."""

import pathlib

FOLDER = 'checkpoints'  # in the run directory


def safe_step(directory: pathlib.Path) -> int | None:
    """The newest step of a run that is saved completely."""
    return max((int(path.name) for path in (directory / FOLDER).glob('*') if path.name.isdecimal()), default=None)


def continues(directory: pathlib.Path, once: str) -> str:
    """What the same command does next, for the line that a failed run ends with; `once` says what must be before."""
    step = safe_step(directory)
    safe, then = ('no step is saved', 'begins anew') if step is None else (f'step {step} is safe', 'continues after it')
    return f'{safe}; {once}, the same command {then}'
