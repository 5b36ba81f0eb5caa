"""Disk space of checkpoints: how much one takes, and the removal of unfinished ones."""

import contextlib
import os
import pathlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import jax

from posenc_jax.lab.files import disk, paths
from posenc_jax.lab.files.saved_steps import (
    COMMITTED,
    FOLDER,
    continues,
    finished_steps,
    saved_steps,
)
from posenc_jax.protocol.errors import quoted, shortened

_UNFINISHED = '*.orbax-checkpoint-tmp*'  # folders of unfinished saves
# Estimated bytes beside the data of the arrays: for each array (shape, sharding, entry of the
# tree), and once for the checkpoint.
_EACH, _ONCE = 2048, 65536


@contextlib.contextmanager
def run_told(directory: pathlib.Path) -> Iterator[None]:
    """Adds to an error that ends a run, of a full disk or of a bucket, the step from which the run
    can continue.

    Raises:
      DiskFullError: the disk is full.
      UnreachableError: a bucket cannot be read or written.
    """
    try:
        with disk.told(directory):
            yield
    except (disk.DiskFullError, paths.UnreachableError) as error:
        full = isinstance(error, disk.DiskFullError)
        once = 'once there is room' if full else 'once it can be reached'
        raise type(error)(f'{error}; {continues(directory, once)}') from error


def checkpoint_bytes(checkpoints: pathlib.Path, tree: Any) -> int:
    """The number of bytes that a checkpoint takes: as many as the newest checkpoint, or without one
    an estimate from the uncompressed arrays.

    Args:
      checkpoints: the folder of the checkpoints.
      tree: the arrays, or their shapes.
    """
    if paths.is_local(checkpoints) and (steps := finished_steps(checkpoints.parent)):
        return sum(
            path.lstat().st_blocks * 512 for path in (checkpoints / str(steps[-1])).rglob('*')
        )
    leaves = jax.tree.leaves(tree)
    return sum(leaf.size * leaf.dtype.itemsize + _EACH for leaf in leaves) + _ONCE


def drop_unfinished(checkpoints: pathlib.Path) -> None:
    """Removes the folders of saves that were cut off or failed. No process reads them."""
    if jax.process_index() == 0:
        if paths.is_local(checkpoints):
            for path in checkpoints.glob(_UNFINISHED):
                shutil.rmtree(path, ignore_errors=True)
            return
        # What stays, orbax removes before it saves the same step.
        with contextlib.suppress(Exception):
            for step, finished in saved_steps(checkpoints).items():
                if not finished:
                    disk.remove_folder(checkpoints / str(step))


def remove(checkpoint: pathlib.Path) -> None:
    """Removes a checkpoint. In a bucket it first stops being finished, in case this is cut off."""
    if not paths.is_local(checkpoint):
        (checkpoint / COMMITTED).unlink(missing_ok=True)
    disk.remove_folder(checkpoint)


def check_place(directory: pathlib.Path) -> None:
    """Raises ValueError unless a run can be in this directory: orbax can write checkpoints there,
    and the folders of checkpoints, of results and of TensorBoard exist or can be made.
    """
    if not paths.is_local(directory) and not str(directory).startswith('gs://'):
        raise ValueError(
            f'{directory}: checkpoints cannot be in such a bucket; expected a local or mounted '
            'folder, or gs://BUCKET/PATH'
        )
    for name in (FOLDER, 'eval', 'tensorboard'):
        check_folder(directory / name)


def check_folder(folder: pathlib.Path) -> None:
    """Raises ValueError if a local folder cannot be made where it does not exist, because a part of
    its path is a file or a link to nowhere.
    """
    for place in (folder, *folder.parents) * paths.is_local(folder):
        try:
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # a parent that is a file is named below
        except OSError as error:
            raise ValueError(
                f'{shortened(str(place), 96)}: {error.strerror}; expected a folder that can be made'
            ) from error
        if place.is_symlink() and not place.exists():
            raise ValueError(
                f'{place} is a link to {quoted(os.readlink(place))}, which does not exist; make '
                'that folder, or remove the link'
            )
        if not place.is_dir():
            raise ValueError(f'{place} is a file; expected a folder. Move it away')


def writers() -> list[threading.Thread]:
    """The threads of orbax that write a checkpoint."""
    return [t for t in threading.enumerate() if type(t).__module__.startswith('orbax.')]


def wait_for_writers() -> None:
    """Waits for the threads of orbax after one of them has failed; the others go on writing for a
    while.
    """
    for thread in writers():
        # Not `thread.join`, which in the threads of orbax raises the error of the thread.
        threading.Thread.join(thread, 10.0)
