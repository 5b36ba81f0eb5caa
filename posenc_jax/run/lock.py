"""Locks on files: processes that use one directory at a time, or none while others read it.

The kernel gives a lock back when the process that holds it ends, however it ends, so that none is
ever left behind; the file stays, and says who holds it as long as somebody does. Processes on
several hosts see each other's locks where the file system passes them on (NFS, Lustre mounted with
`flock`); one that has no locks at all is named in a line.
"""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import socket
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_held: set[int] = (
    set()
    # descriptors; a forked child gives them up at once, or it would go on holding the locks of its
    # parent
)


class HeldError(ValueError):
    """Another process holds a lock; the message says which, since when, and what to do."""


def _give_up() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_give_up)


@contextlib.contextmanager
def hold(path: pathlib.Path, doing: str, instead: str) -> Iterator[None]:
    """Holds the lock of a file until the context ends; its folder is made if need be.

    Args:
      path: of the lock file.
      doing: what is done under the lock, as the refusal says it.
      instead: what else one can do than wait.

    Raises:
      HeldError: another process, or another part of this one, holds it.
      OSError: the file cannot be written.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), 'run.lock')
      >>> with hold(path, 'the run is being trained', 'train another one'):
      ...     path.read_text()[:11]
      '{"process":'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        if not _lock(descriptor, path):
            raise HeldError(f'{doing} by {_holder(descriptor)}; wait for it, or {instead}')
        now = datetime.datetime.now().astimezone().isoformat(sep=' ', timespec='seconds')
        holder = {'process': os.getpid(), 'host': socket.gethostname(), 'since': now}
        _write(descriptor, json.dumps(holder) + '\n')
        try:
            yield
        finally:
            if descriptor in _held:  # not in a forked child
                _write(descriptor, '')
    finally:
        _close(descriptor)


@contextlib.contextmanager
def sharing(path: pathlib.Path) -> Iterator[None]:
    """Keeps what `alone` guards as it is until the context ends, together with others; waits while
    somebody is alone.

    Reads only: without a lock file, which whoever guards something makes, there is nothing to wait
    for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield
        return
    _held.add(descriptor)
    try:
        _lock(descriptor, path, shared=True)
        yield
    finally:
        _close(descriptor)


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[bool]:
    """Whether nobody is `sharing` now; if so, nobody begins to until the context ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        yield _lock(descriptor, path)
    finally:
        _close(descriptor)


def _lock(descriptor: int, path: pathlib.Path, *, shared: bool = False) -> bool:
    """Whether the lock was got, a shared one after waiting; where there are none it counts as got,
    and a line says so.
    """
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        print(f'the file system of {path} has no locks ({error.strerror}): nothing keeps other '
              'processes away from '
              f'{path.parent}; see to it that only one writes there', flush=True)  # fmt: skip
    return True


def _close(descriptor: int) -> None:
    if descriptor in _held:
        _held.remove(descriptor)
        os.close(descriptor)


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _holder(descriptor: int) -> str:
    """Who holds a lock, as its file says."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f'process {found["process"]} on {found["host"]} since {found["since"]}'
    except (ValueError, KeyError, TypeError, OSError):  # not written yet
        return 'another process'
