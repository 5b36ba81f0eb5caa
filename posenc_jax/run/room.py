"""What a full disk means for a run: how much a checkpoint takes, and what is left of one that
failed.
"""

import contextlib
import pathlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import jax

from posenc_jax.core import disk
from posenc_jax.run.safe import continues, finished_steps

_UNFINISHED = '*.orbax-checkpoint-tmp*'
# Bytes of a checkpoint besides its arrays: for each of them (shape, sharding, entry of the tree),
# and once.
_EACH, _ONCE = 2048, 65536


@contextlib.contextmanager
def run_told(directory: pathlib.Path) -> Iterator[None]:
    """Within, a full disk ends a run with one line that says which step is safe.

    Raises:
      DiskFullError: the disk is full.
    """
    try:
        with disk.told(directory):
            yield
    except disk.DiskFullError as error:
        raise disk.DiskFullError(
            f'{error}; {continues(directory, "once there is room")}'
        ) from error


def checkpoint_bytes(checkpoints: pathlib.Path, tree: Any) -> int:
    """The room that a checkpoint takes: that of the newest one, or where there is none what the
    arrays would take uncompressed.

    Args:
      checkpoints: the folder.
      tree: the arrays, or their shapes.
    """
    if steps := finished_steps(checkpoints.parent):
        return sum(
            path.lstat().st_blocks * 512 for path in (checkpoints / str(steps[-1])).rglob('*')
        )
    leaves = jax.tree.leaves(tree)
    return sum(leaf.size * leaf.dtype.itemsize + _EACH for leaf in leaves) + _ONCE


def drop_unfinished(checkpoints: pathlib.Path) -> None:
    """Removes what saves that were cut off or failed have left, which nobody reads."""
    if jax.process_index() == 0:
        for path in checkpoints.glob(_UNFINISHED):
            shutil.rmtree(path, ignore_errors=True)


def wait_for_writers() -> None:
    """Waits for the threads of orbax where one of them has failed: they go on writing for a
    while.
    """
    for thread in threading.enumerate():
        if type(thread).__module__.startswith('orbax.'):
            threading.Thread.join(thread, 10.0)  # their own raises what they met
