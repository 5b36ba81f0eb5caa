"""Ctrl-C while the programs of this package start. The package imports this module first: until a
program runs, most of a second or more goes by with imports, and a signal would print the place of
one of them. In a process that only uses the package nothing changes.
"""

import os
import pathlib
import re
import signal
import sys
import threading

STOPPED = 130  # the exit status after Ctrl-C
_SCRIPTS = [pathlib.Path(__file__).parents[2] / name for name in ('train.py', 'eval.py')]


def _is_program() -> bool:
    """Whether this process is a program of this package: a command that pip installed, a script of
    the repository, or `python -m` with a module of the package.
    """
    called = pathlib.Path(sys.argv[0]) if sys.argv else pathlib.Path()
    if called.name == '-m':  # only while Python looks for the module
        given = zip(sys.orig_argv, sys.orig_argv[1:])
        module = next((name for flag, name in given if re.fullmatch(r'-\w*m', flag)), '')
        return module.partition('.')[0] == 'posenc_jax'
    return called.stem.startswith('posenc-') or called.absolute() in _SCRIPTS


def _stop(*_) -> None:
    os.write(2, b'stopped before the program had begun\n')
    os._exit(STOPPED)


def started() -> None:
    """Gives the signal back to Python's own handler."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    and _is_program()
):
    signal.signal(signal.SIGINT, _stop)
