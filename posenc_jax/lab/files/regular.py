"""Regular files. Whoever opens a pipe waits for a writer, and whoever reads a device may never come
to its end. A run may come from anybody, so its files are looked at before they are opened.

Where a file is read, a symbolic link to a regular file counts as that file. A file that is written
in place is never reached through a link (`opened`). Buckets have regular objects alone.
"""

import contextlib
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any

from posenc_jax.lab.files import paths

_KINDS = (
    (stat.S_ISLNK, 'a symbolic link'),
    (stat.S_ISDIR, 'a folder'),
    (stat.S_ISFIFO, 'a pipe'),
    (stat.S_ISSOCK, 'a socket'),
)
# The most bytes of a file that is read as a whole. The largest such file lists the arrays of a
# checkpoint, in about 300 bytes for each array.
_WHOLE = 2**26
_ARRAYS = 'd'  # the name of the folders in which the arrays themselves lie
# Windows has neither. The second keeps `os.open` from waiting, should a pipe take the place of the
# file after it was looked at.
_CAREFUL = getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_NONBLOCK', 0)


def check(path: pathlib.Path) -> None:
    """Looks at what is read at a path, without opening it. Nothing at all is no error, and neither
    is what cannot be looked at: reading it says why.

    Raises:
      ValueError: it is neither a regular file nor a symbolic link to one.
    """
    if paths.is_local(path):
        with contextlib.suppress(OSError):  # whoever reads it is told
            _check_mode(path, os.stat(path).st_mode)


def read_text(path: pathlib.Path) -> str:
    """`path.read_text()` of a regular file, see `check`, of at most 64 MiB."""
    check(path)
    if paths.is_local(path):
        _check_size(path)
    return path.read_text()


def read_most(file: IO, most: int, told: Callable[[], str]) -> Any:
    """What is left of an open file, which may be a pipe and have no size.

    Args:
      file: a file of bytes or of text.
      most: how many bytes, or letters, are read at most.
      told: gives the message about a longer file.

    Raises:
      ValueError: the file is longer.
    """
    found = file.read(most + 1)
    if len(found) > most:
        raise ValueError(told())
    return found


def opened(path: pathlib.Path, flags: int) -> int:
    """`os.open` of a regular file that is not reached through a link. What is at the path is looked
    at before it is opened.

    Args:
      path: a local path.
      flags: of `os.open`. With `os.O_CREAT` the file need not exist.

    Returns:
      The file descriptor.

    Raises:
      ValueError: something else is at the path.
      OSError: the file cannot be opened.
    """
    with contextlib.suppress(FileNotFoundError):
        _check_mode(path, os.lstat(path).st_mode)
    descriptor = os.open(path, flags | _CAREFUL, 0o666)
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)
    except ValueError:
        os.close(descriptor)
        raise
    return descriptor


def check_below(folder: pathlib.Path) -> None:
    """`check` for every file in the folders of a local folder, at any depth, and for its size.

    The folder and the folders in it may be symbolic links, for example to another disk. Below
    these, a link must lead to a regular file, so the walk ends.

    Raises:
      ValueError: one of them is not a regular file, or has more than 64 MiB and lies in no folder
        `d` of arrays.
    """
    if not paths.is_local(folder):
        return
    found = [pathlib.Path(entry.path) for entry in _entries(folder)]
    folders = [path for path in found if path.is_dir()]
    for path in found:
        if path not in folders:
            check(path)
    while folders:
        home = folders.pop()
        for entry in _entries(home):
            path = pathlib.Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
                continue
            if not entry.is_file(follow_symlinks=False):
                check(path)
            if home.name != _ARRAYS:
                _check_size(path)


def _check_size(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):  # whoever reads it is told
        if (size := os.stat(path).st_size) > _WHOLE:
            raise ValueError(f'{path} has {size} bytes, expected at most {_WHOLE}; move it away')


def _entries(folder: pathlib.Path) -> Iterator[os.DirEntry]:
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        yield from found


def _check_mode(path: pathlib.Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_it, name in _KINDS if is_it(mode)), 'a device')
        if path.is_symlink() and not stat.S_ISLNK(mode):
            kind = f'a symbolic link to {kind}'
        raise ValueError(f'{path} is {kind}, expected a regular file; move it away')
