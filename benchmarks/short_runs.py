"""Short runs that the programs beside this file kill, stop or starve, and then continue."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from posenc_jax.lab.train.metrics_file import FILE, read_lines  # noqa: E402

NAME = 'run'


def arguments(fields: tuple[str, ...], workdir, config: str = 'default') -> list[str]:
    """The arguments of `train.py` for a run that is called `NAME`, in a folder."""
    settings = (f'--config.{field}' for field in (*fields, f'name={NAME}', f'workdir={workdir}'))
    return [f'--config=configs/{config}.py', *settings]


def losses(workdir) -> dict[int, float]:
    """Step -> loss of the run in a folder."""
    lines = read_lines(pathlib.Path(workdir, NAME, FILE))
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


def in_namespaces(*options: str) -> None:
    """Starts this program again, as `--inside`, with mounts of its own that end with it."""
    if '--inside' not in sys.argv:
        user = [] if os.geteuid() == 0 else ['--user', '--map-root-user']
        command = ['unshare', '--mount', *options, *user, sys.executable, *sys.argv, '--inside']
        sys.exit(subprocess.run(command).returncode)


def mount(where: pathlib.Path, size: str, *options: str) -> None:
    """Mounts a file system of this size, or changes the size of one that is mounted."""
    where.mkdir(exist_ok=True)
    given = ','.join([f'size={size}', *options])
    subprocess.run(['mount', '-t', 'tmpfs', '-o', given, 'tmpfs', where], check=True)
