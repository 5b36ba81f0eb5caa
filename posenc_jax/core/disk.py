"""Files that are complete or as they were before, and a full disk said in one line."""

import contextlib
import errno
import io
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator

import numpy as np

_CODES = (errno.ENOSPC, errno.EDQUOT)
_WORDS = tuple(
    os.strerror(code) for code in _CODES
)  # what libraries keep of an error of the operating system


class DiskFullError(OSError):
    """There is no room for a file; the message says for which, how much was needed and how much is
    free.
    """


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that the disk is full, or a quota used up.

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
    """Bytes that may be written where `path` is or would be; 0 where no further file may be
    made.
    """
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not hasattr(os, 'statvfs'):  # Windows
        return shutil.disk_usage(place).free
    found = os.statvfs(place)
    if not found.f_blocks:  # of a file system that does not say
        return sys.maxsize
    return 0 if found.f_files and not found.f_favail else found.f_bavail * found.f_frsize


def size(count: float) -> str:
    """A number of bytes as people say it.

    Example:
      >>> size(999), size(53_686_272)
      ('999 bytes', '53.7 MB')
    """
    if count < 1000:
        return f'{count:.0f} bytes'
    for unit in ('kB', 'MB', 'GB'):
        count /= 1000
        if count < 999.95:
            break
    return f'{count:.1f} {unit}'


def need(path: pathlib.Path, needed: int) -> None:
    """Checks before anything is written.

    Raises:
      DiskFullError: less than `needed` bytes are free.
    """
    if free(path) < needed:
        raise _error(path, needed)


@contextlib.contextmanager
def told(path: pathlib.Path, needed: int | None = None) -> Iterator[None]:
    """Within, whatever error says that the disk is full becomes one of ours.

    Args:
      path: what is written.
      needed: how many bytes that takes, where it is known.

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
            f'the disk is full: there is no room for {path}, {size(left)} are free'
        )
    why = '' if left < needed else ', which a quota or another program may have taken'
    return DiskFullError(
        f'the disk is full: {path} needs {size(needed)}, {size(left)} are free{why}'
    )


@contextlib.contextmanager
def whole(path: pathlib.Path, needed: int | None = None) -> Iterator[pathlib.Path]:
    """A path to write to instead of `path`, whose place it takes in the end; where that fails,
    `path` is as it was.

    The folder is made if need be.

    Args: see `told`.

    Raises:
      DiskFullError: the disk is full; what was written is removed.
    """
    partial = path.with_name(
        f'{path.stem}.partial{path.suffix}'
    )  # the ending tells writers of pictures the format
    with told(path, needed):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file, see `whole`."""
    content = content.encode() if isinstance(content, str) else content
    with whole(path, len(content)) as partial:
        partial.write_bytes(content)


def save_figure(figure, path: str | pathlib.Path, /, **options) -> None:
    """`figure.savefig` in the format of the path's ending, as `write` does it."""
    path, content = pathlib.Path(path), io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], **options)
    write(path, content.getvalue())


def save_arrays(path: pathlib.Path, /, **arrays) -> None:
    """`numpy.savez`, as `write` does it."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    write(path, content.getvalue())


class Appended:
    """A file that is added to, piece by piece, each of which is in it completely or not at all.

    Args:
      path: the file; made if it is not there.

    Raises:
      DiskFullError: there is no room for a piece; also from `write`.
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
