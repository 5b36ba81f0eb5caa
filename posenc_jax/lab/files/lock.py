"""Locks on files: exclusive for a process that writes in a directory, shared for processes that
read there.

The kernel releases a lock when the process that holds it ends, even if that process is killed. The
lock file itself stays; while the lock is held, the file names the holder. Locks work across hosts
if the file system supports it (NFS, Lustre mounted with `flock`). Where it has no locks, a line is
printed and the work goes on without them. A bucket has none: there the lock file is an object that
names the process that writes, for people to read; nothing is refused.

A lock file may come from anybody. It is opened if it is a regular file, and it is written if what
it holds is empty or names a holder. What it holds is printed with escapes.
"""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

from posenc_jax.base.programs import printable
from posenc_jax.lab.files import disk, paths, regular
from posenc_jax.protocol.errors import quoted, shortened

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_MOST = 4096  # bytes of a lock file
# Open lock files. A forked child closes them at once; it would otherwise keep the locks of its
# parent.
_held: set[int] = set()


class HeldError(ValueError):
    """Another process holds a lock; the message says which, since when, and what to do."""


def _give_up() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_give_up)


@contextlib.contextmanager
def hold(path: pathlib.Path, doing: str, instead: str) -> Iterator[int | None]:
    """Holds the exclusive lock of a file until the context ends. Missing folders are made.

    Yields the file descriptor that has the lock, or None in a bucket. A program to which it is
    passed on (`pass_fds` of `subprocess`) keeps the lock if this process is killed.

    Args:
      path: the lock file.
      doing: what is done under the lock, for the message, e.g. 'the run is being trained'.
      instead: what a user can do instead of waiting, for the message.

    Raises:
      HeldError: another process, or another part of this one, holds the lock.
      ValueError: at the path is something else than a lock file: a link, a pipe, another file.
      OSError: the file cannot be written.
    """
    if not paths.is_local(path):
        with _named(path):
            yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = regular.opened(path, os.O_RDWR | os.O_CREAT)
    _held.add(descriptor)
    try:
        if not _lock(descriptor, path):
            raise HeldError(f'{doing} by {_holder(descriptor)}; wait for it, or {instead}')
        _check_content(path, os.pread(descriptor, _MOST + 1, 0))
        _write(descriptor, _this_process())
        try:
            yield descriptor
        finally:
            if descriptor in _held:  # not in a forked child
                _write(descriptor, '')
    finally:
        _close(descriptor)


def offer(path: pathlib.Path) -> None:
    """Makes the file that `sharing` looks for, whose folder exists. Raises ValueError if something
    else than a regular file is there.
    """
    if paths.is_local(path):
        os.close(regular.opened(path, os.O_RDWR | os.O_CREAT))


@contextlib.contextmanager
def sharing(path: pathlib.Path) -> Iterator[None]:
    """Holds the shared lock of a file until the context ends. Several processes may hold it; waits
    while a process is `alone`.

    The file is only read, also through a symbolic link. Where it does not exist, and in a bucket,
    there is no lock, and nothing is waited for. Raises ValueError if it is not a regular file.
    """
    if not paths.is_local(path):
        yield
        return
    regular.check(path)
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
    """Tries to take the exclusive lock of a file, without waiting. Yields whether no process is
    `sharing` it; if so, none can begin to until the context ends. In a bucket that is not known,
    and True is yielded.
    """
    if not paths.is_local(path):
        yield True
        return
    descriptor = regular.opened(path, os.O_RDWR | os.O_CREAT)
    _held.add(descriptor)
    try:
        yield _lock(descriptor, path)
    finally:
        _close(descriptor)


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    """`hold` in a bucket: an object names this process until the context ends."""
    found = b''
    with paths.reached(path):
        if path.exists():
            with path.open('rb') as file:
                found = file.read(_MOST + 1)
    _check_content(path, found)
    before = f' {path.name} there names {_named_in(found)}, which may still run.' if found else ''
    print(
        f'{path.parent} is in a bucket, which has no locks.{before} Make sure that only one '
        'process writes there',
        flush=True,
    )
    disk.write(path, _this_process())
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # the error that ended the work is raised
            path.unlink()


def _this_process() -> str:
    now = datetime.datetime.now().astimezone().isoformat(sep=' ', timespec='seconds')
    holder = {'process': os.getpid(), 'host': socket.gethostname(), 'since': now}
    return json.dumps(holder) + '\n'


def _lock(descriptor: int, path: pathlib.Path, *, shared: bool = False) -> bool:
    """Takes a lock; returns whether it was free. A shared lock is waited for. On a file system
    without locks a line is printed, and the lock counts as free.
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
        print(
            f'the file system of {path} has no locks ({error.strerror}): nothing keeps other '
            f'processes away from {path.parent}; make sure that only one process writes there',
            flush=True,
        )
    return True


def _close(descriptor: int) -> None:
    if descriptor in _held:
        _held.remove(descriptor)
        os.close(descriptor)


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _holder(descriptor: int) -> str:
    """The holder of a lock, from the content of its file."""
    try:
        return _named_in(os.pread(descriptor, _MOST, 0))
    except OSError:
        return _named_in(b'')


def _named_in(content: bytes) -> str:
    if not (found := _read(content)):  # the holder has not written it yet
        return 'another process'
    host, since = (printable(shortened(found[name], 80)) for name in ('host', 'since'))
    return f'process {quoted(found["process"])} on {host} since {since}'


def _read(content: bytes) -> dict[str, Any]:
    """What `_this_process` has written, or {}."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    kinds = {'process': int, 'host': str, 'since': str}
    own = isinstance(found, dict) and {name: type(value) for name, value in found.items()} == kinds
    return found if own else {}


def _check_content(path: pathlib.Path, content: bytes) -> None:
    """Raises ValueError unless the content is that of a lock file, which may be overwritten. Zeros
    are what a machine that crashed has left.
    """
    if len(content) > _MOST or content.strip(b'\0') and not _read(content):
        raise ValueError(
            f'{path} is not a lock file: it holds {quoted(content[:_MOST], 40)}, expected nothing '
            'or the name of a process; move it away'
        )
