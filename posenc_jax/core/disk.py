"""Files that are written completely or not at all, and a one-line error for a full disk."""

import contextlib
import errno
import io
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator

import numpy as np

from posenc_jax.core.memory import readable

_CODES = (errno.ENOSPC, errno.EDQUOT)
# Some libraries keep only these words of an error of the operating system.
_WORDS = tuple(os.strerror(code) for code in _CODES)


class DiskFullError(OSError):
    """There is no room for a file. The message names the file, its size and the free space."""


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that the disk is full or a quota is used up.

    Example:
      >>> (
      ...     is_full(OSError(errno.ENOSPC, 'No space left on device')),
      ...     is_full(ValueError('RESOURCE_EXHAUSTED: No space left on device')),
      ... )
      (True, True)
      >>> is_full(ValueError('RESOURCE_EXHAUSTED: out of memory'))
      False
    """
    while error is not None:
        if (
            isinstance(error, DiskFullError)
            or getattr(error, 'errno', None) in _CODES
            or any(w in str(error) for w in _WORDS)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def free(path: pathlib.Path) -> int:
    """Free bytes at `path`, which need not exist yet; 0 if no further file can be made there."""
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
        if not is_full(error):
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

    If anything fails, `path` stays as it was. The folder is made if need be.

    Args: see `told`.

    Raises:
      DiskFullError: the disk is full; what was written is removed.
    """
    # The ending stays, because libraries read the format of a picture from it.
    partial = path.with_name(f'{path.stem}.partial{path.suffix}')
    with told(path, needed):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file completely or not at all, see `whole`."""
    content = content.encode() if isinstance(content, str) else content
    with whole(path, len(content)) as partial:
        partial.write_bytes(content)


def save_figure(figure, path: str | pathlib.Path, /, **options) -> None:
    """`figure.savefig` in the format of the path's ending, completely or not at all."""
    path, content = pathlib.Path(path), io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], **options)
    write(path, content.getvalue())


def save_arrays(path: pathlib.Path, /, **arrays) -> None:
    """`numpy.savez`, completely or not at all."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    write(path, content.getvalue())


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

    def close(self) -> None:
        self._file.close()
