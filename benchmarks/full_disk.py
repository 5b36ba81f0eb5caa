"""Trains a short run on file systems that may be too small, enlarges them, and continues the run.

Command:  python benchmarks/full_disk.py [--sizes 20] [--blind]
Expected: 'all good: True'; about 15 s for each size on two CPU cores. Needs Linux, because each
          file system is a tmpfs in a separate mount namespace; a user who is not root needs user
          namespaces (unshare --user). --blind skips the check for free room before a save, so that
          the error is raised in the threads that write a checkpoint.

The sizes go from far too small to large enough. The row of a size is good if four things hold. The
run ended with status 0, or with status 2 and one line on stderr. The step that this line calls safe
is the newest checkpoint that can be read, with its arrays verified. No unfinished checkpoint is
left. After the file system was enlarged, the same command continues from that step and reaches the
losses of an undisturbed run.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

from measure import options
from short_runs import NAME, ROOT, arguments, in_namespaces, losses, mount

from posenc_jax.lab.runs.checkpoint import CheckpointError
from posenc_jax.lab.runs.restore import restore_model

STEPS, ENLARGED = 24, '64m'
FIELDS = (
    'encoding=t5_rpe() | alibi()', 'model.layers=2', 'model.width=32', 'model.heads=4',
    f'train.steps={STEPS}', 'train.batch=8', 'train.length=32', 'train.warmup=4',
    'train.log_every=1', 'train.eval_every=12', 'train.save_every=4', 'train.keep=2',
    'eval.lengths=32,64', 'eval.tokens=256', 'eval.stride=16',
)  # fmt: skip


BLIND = """
import runpy, sys
from posenc_jax.lab.files import disk
disk.need = lambda *_: None
sys.argv = sys.argv[1:]
runpy.run_path('train.py', run_name='__main__')
"""


def train(workdir: pathlib.Path, cache: str, blind: bool = False) -> subprocess.CompletedProcess:
    environment = {
        **os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': cache,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }  # fmt: skip
    own = ['-c', BLIND] if blind else []
    command = [sys.executable, *own, 'train.py', *arguments(FIELDS, workdir)]
    how = dict(cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    return subprocess.run(command, **how)


def readable(run: pathlib.Path) -> int | None:
    """The newest step whose arrays are those that were saved."""
    try:
        return restore_model(run)[2]
    except (CheckpointError, FileNotFoundError):
        return None


def attempt(
    where: pathlib.Path, size: int, cache: str, expected: dict[int, float], blind: bool
) -> bool:
    """Prints one row of the table and returns whether it is good."""
    mount(where, str(size))
    first = train(where, cache, blind)
    said = first.stderr.splitlines()
    pattern = r'(?:step (\d+) is safe|no step is saved); once there is room'
    stated = re.search(pattern, said[-1] if said else '')
    safe = int(stated[1]) if stated and stated[1] else None
    ended = not said if first.returncode == 0 else len(said) == 1 and stated is not None
    good = first.returncode in (0, 2) and ended
    found = readable(where / NAME)
    good &= found == (STEPS if first.returncode == 0 else safe)
    good &= not list(where.rglob('*.orbax-checkpoint-tmp*')) and not list(where.rglob('*.partial*'))
    mount(where, ENLARGED, 'remount')
    second = train(where, cache)
    went_on = second.returncode == 0 and losses(where) == expected
    went_on &= (where / NAME / 'eval' / 'results.json').is_file()
    continued = re.search(rf'(?:after|to) step {found} of {STEPS}', second.stdout)
    went_on &= found is None or continued is not None
    subprocess.run(['umount', where], check=True)
    line = said[-1].replace(str(where), '') if said else 'trained and evaluated'
    words = f'{size / 1000:8.0f}  {first.returncode:6}  {found or "-":>4}'
    print(f'{words}  {"yes" if went_on else "NO":9}  {line}', flush=True)
    return good and went_on


def main():
    asked = options(
        __doc__,
        sizes=(20, 'how many file systems'),
        blind=(False, 'do not look at the room before a save'),
        inside=(False, 'given by the program itself, which starts again in a namespace'),
    )
    in_namespaces()
    folder = tempfile.TemporaryDirectory
    with folder() as whole, folder() as places, folder() as cache:
        undisturbed = train(pathlib.Path(whole), cache)
        if undisturbed.returncode:
            sys.exit(f'the undisturbed run failed: {undisturbed.stderr}')
        expected = losses(pathlib.Path(whole))
        taken = sum(path.lstat().st_blocks * 512 for path in pathlib.Path(whole).rglob('*'))
        step = 1.6 * taken / max(1, asked.sizes - 1)
        sizes = [4096 + round(step * number) for number in range(asked.sizes)]
        print('size, kB  status  safe  continues  last line on stderr')
        good = [
            attempt(pathlib.Path(places, str(size)), size, cache, expected, asked.blind)
            for size in sizes
        ]
    print(f'{sum(good)} of {len(good)} sizes, all good: {all(good)}')
    sys.exit(not all(good))


if __name__ == '__main__':
    main()
