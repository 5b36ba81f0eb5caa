"""Ctrl-C in the programs of this package: a line at once, and one exit status.

Python calls its handlers of signals between two steps of its own, so not while a model is compiled
or computed. Here a thread waits for the signal, and prints.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from posenc_jax.base import starting
from posenc_jax.base.programs import program

Result = TypeVar('Result')

_lines: list[Callable[[], str]] = []  # of the scopes that are open, from outside to inside
_name: list[str] = []  # of the program that is running, if one is
_said = threading.Event()  # cleared while a thread waits for the signal
_said.set()


@contextlib.contextmanager
def announced(line: Callable[[], str]) -> Iterator[None]:
    """A scope in which `line()` is printed to standard error as soon as Ctrl-C is pressed; of
    several scopes the innermost one counts. What the signal does besides is left to its handler.

    Outside of the main thread, and where another library waits for signals in this way, nothing is
    printed.

    Args:
      line: what is printed; another thread calls it.
    """
    _lines.append(line)
    try:
        with _watching() if len(_lines) == 1 else contextlib.nullcontext():
            yield
    except KeyboardInterrupt:
        _said.wait(1.0)  # the thread reads the line of this scope
        raise
    finally:
        _lines.remove(line)


@contextlib.contextmanager
def _watching() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    near, far = socket.socketpair()
    far.setblocking(False)
    before = signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(near,), daemon=True)
    if before == -1:
        _said.clear()
        thread.start()
    else:
        signal.set_wakeup_fd(before)
    try:
        yield
    finally:
        if before == -1:
            signal.set_wakeup_fd(-1)
        far.close()  # ends the thread
        if before == -1:
            thread.join()
            _said.set()


def _watch(near: socket.socket) -> None:
    """Reads the numbers of the signals of this process until the other end is closed."""
    pressed = 0
    with near:
        while numbers := near.recv(64):
            again, pressed = pressed, pressed + numbers.count(signal.SIGINT)
            if pressed > 1 and _name:
                if sys.stdout.isatty():
                    os.write(1, b'\x1b[?25h')  # shows the cursor, which a progress bar hides
                os._exit(starting.STOPPED)
            if pressed and not again:
                with contextlib.suppress(OSError, ValueError, IndexError):  # closed meanwhile
                    name = f'{program(_name[0])}: ' if _name else ''
                    print(f'{name}{_lines[-1]()}', file=sys.stderr, flush=True)
                _said.set()


def run(name: str, main: Callable[[], Result]) -> Result:
    """Calls the main function of a program. Ctrl-C prints a line at once and raises
    KeyboardInterrupt in it, unless it handles the signal itself; this error, and at once a second
    Ctrl-C, end the process with status 130.

    Args:
      name: of the program in messages, see `command.program`.
      main: the function.

    Returns:
      What `main` returns.

    Example:
      >>> run('program', lambda: 3)
      3
    """
    starting.started()
    _name.append(name)
    try:
        with announced(lambda: 'stopping; Ctrl-C again ends at once'):
            return main()
    except KeyboardInterrupt:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed meanwhile
                stream.flush()
        # Python would wait for other processes of JAX, and may crash while JAX still computes.
        os._exit(starting.STOPPED)
    finally:
        _name.pop()
