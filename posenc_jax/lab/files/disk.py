"""Files that are written completely or not at all, and a one-line error for a full disk.

Objects in a bucket (see `posenc_jax.lab.files.paths`) are written completely or not at all by
themselves. They have no temporary names, no folders and no limit of space.
"""

import contextlib
import errno
import io
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from posenc_jax.base.memory import readable
from posenc_jax.base.programs import printable
from posenc_jax.lab.files import paths

_CODES = (errno.ENOSPC, errno.EDQUOT)
SECONDS = 20.0  # between two writings of an object to which pieces are appended
# Some libraries keep only these words of an error of the operating system.
_WORDS = tuple(os.strerror(code) for code in _CODES)


class DiskFullError(OSError):
    """There is no room for a file. The message names the file, its size and the free space."""


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that the disk is full or a quota is used up."""
    met = set()
    while error is not None and id(error) not in met:  # an error raised twice may be its own cause
        met.add(id(error))
        if (
            isinstance(error, DiskFullError)
            or getattr(error, 'errno', None) in _CODES
            or any(w in str(error) for w in _WORDS)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def free(path: pathlib.Path) -> int:
    """Free bytes at `path`, which need not exist yet; 0 if no further file can be made there. A
    bucket has no limit.
    """
    if not paths.is_local(path):
        return sys.maxsize
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not hasattr(os, 'statvfs'):  # Windows
        return shutil.disk_usage(place).free
    found = os.statvfs(place)
    if not found.f_blocks:  # the file system does not report its size
        return sys.maxsize
    return 0 if found.f_files and not found.f_favail else found.f_bavail * found.f_frsize


def need(path: pathlib.Path, needed: int) -> None:
    """Checks that there is room, before anything is written.

    Raises:
      DiskFullError: less than `needed` bytes are free.
    """
    if free(path) < needed:
        raise _error(path, needed)


@contextlib.contextmanager
def told(path: pathlib.Path, needed: int | None = None) -> Iterator[None]:
    """A scope in which every error that says the disk is full becomes a `DiskFullError`.

    Args:
      path: the file that is written, for the message.
      needed: its size in bytes, if known.

    Raises:
      DiskFullError: the disk is full.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not is_full(error) or not paths.is_local(path):
            raise
        raise _error(path, needed) from error


def _error(path: pathlib.Path, needed: int | None) -> DiskFullError:
    left = free(path)
    if needed is None:
        return DiskFullError(
            f'the disk is full: there is no room for {path}, {readable(left)} are free'
        )
    why = '' if left < needed else ', which a quota or another program may have taken'
    return DiskFullError(
        f'the disk is full: {path} needs {readable(needed)}, {readable(left)} are free{why}'
    )


@contextlib.contextmanager
def whole(path: pathlib.Path, needed: int | None = None) -> Iterator[pathlib.Path]:
    """A scope with a temporary path to write to, which replaces `path` at the end.

    If anything fails, `path` stays as it was. The folder is made if need be. In a bucket `path`
    itself is given; it must be written by one call, as `write` does.

    Args: see `told`.

    Raises:
      DiskFullError: the disk is full; what was written is removed.
    """
    # The ending stays, because libraries read the format of a picture from it.
    partial = path.with_name(f'{path.stem}.partial{path.suffix}')
    with told(path, needed):
        if not paths.is_local(path):
            yield path
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)  # it may be a link, to a file that would be overwritten
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file completely or not at all, see `whole`.

    Raises:
      DiskFullError: the disk is full.
      OSError: the file cannot be written, or its bucket cannot be reached.
    """
    content = content.encode() if isinstance(content, str) else content
    with whole(path, len(content)) as partial, paths.reached(path):
        partial.write_bytes(content)


def show_letters(figure) -> None:
    r"""Makes the texts of a figure show all of their letters: names that others gave have control
    characters, which no font has, and signs of dollars, between which Matplotlib reads
    mathematics, with an error where that is wrong. The labels of ticks stay as they are.

    Example:
      >>> from matplotlib.figure import Figure
      >>> figure = Figure()
      >>> title = figure.suptitle('a$b$ \x1b')
      >>> show_letters(figure)
      >>> print(title.get_text())
      a\$b\$ \x1b
    """
    for text in figure.findobj(lambda part: hasattr(part, 'set_text')):
        lines = '\n'.join(map(printable, text.get_text().split('\n')))
        text.set_text(re.sub(r'(?<!\\)\$', r'\\$', lines))


def save_figure(figure, path: str | pathlib.Path, /, **options) -> None:
    """`figure.savefig` in the format of the path's ending, completely or not at all. Its texts are
    shown letter by letter, see `show_letters`.
    """
    path, content = paths.path(path), io.BytesIO()
    show_letters(figure)
    figure.savefig(content, format=path.suffix[1:], **options)
    write(path, content.getvalue())


def save_arrays(path: pathlib.Path, /, **arrays) -> None:
    """`numpy.savez`, completely or not at all."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    write(path, content.getvalue())


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder with those above it. A bucket needs none, and asking for one could make the
    bucket itself.
    """
    if paths.is_local(path):
        path.mkdir(parents=True, exist_ok=True)


def copy(path: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    """Copies a file; returns `to`."""
    if paths.is_local(path):
        shutil.copy2(path, to)
    else:
        write(to, path.read_bytes())
    return to


def remove_folder(path: pathlib.Path) -> None:
    """Removes a folder with everything in it."""
    if paths.is_local(path):
        shutil.rmtree(path)
    else:
        cast(Any, path).rmtree()


def appended(path: pathlib.Path) -> 'Appended | AppendedObject':
    """The file at `path`, to which pieces can be appended, on a disk or in a bucket."""
    return Appended(path) if paths.is_local(path) else AppendedObject(path)


class Appended:
    """A file to which pieces are appended. Each piece is in it completely or not at all.

    Args:
      path: the file, which is made if it does not exist.

    Raises:
      DiskFullError: there is no room for the file or, in `write`, for a piece.
    """

    def __init__(self, path: pathlib.Path):
        with told(path):
            self._file = path.open('ab', buffering=0)
        self._path = path

    def write(self, piece: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        with told(self._path, len(piece)):
            try:
                rest = memoryview(piece)
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._file.truncate(end)
                raise

    def flush(self) -> None:
        """Nothing is left to write: `write` does not wait."""

    def close(self) -> None:
        self._file.close()


class AppendedObject:
    """An object in a bucket to which pieces are appended.

    A bucket can only replace an object, and it takes about one write of an object a second. So all
    pieces are kept in memory, and `flush` and `close` write the whole object again. `write` does so
    too, once 20 seconds have passed since the object was written last. If writing it takes longer
    than 0.4 seconds, the pause is 50 times as long as the writing. A process that is killed loses
    the pieces that came after the last writing.

    Args:
      path: the object; what it holds already is kept.

    Raises:
      OSError: the bucket cannot be reached; also from the methods.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        with paths.reached(path):
            self._content = bytearray(path.read_bytes() if path.exists() else b'')
        self._waits, self._due = False, time.monotonic() + SECONDS

    def write(self, piece: bytes) -> None:
        self._content += piece
        self._waits = True
        if time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Writes the object if a piece waits."""
        if self._waits:
            begin = time.monotonic()
            write(self._path, bytes(self._content))
            end = time.monotonic()
            self._waits, self._due = False, end + max(SECONDS, 50 * (end - begin))

    def close(self) -> None:
        self.flush()
