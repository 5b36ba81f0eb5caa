"""Keeps to itself what the libraries that read and write checkpoints print beside the exceptions that they raise."""

import asyncio
import contextlib
import logging
import pathlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Hides the log of orbax, and what is printed of the other reads where one of many that run side by side fails.

    The first failure ends the event loop of orbax. Reads that end later cannot tell it, which Python reports as an exception
    that nobody can catch, and the futures of those that failed are reported by the logger of asyncio when they are collected.
    """
    hook, of_asyncio, of_orbax = sys.unraisablehook, logging.getLogger(asyncio.__name__), logging.getLogger('absl')

    def unraisable(found):
        if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == 'Event loop is closed'):
            hook(found)

    heard = lambda record: 'exception was never retrieved' not in record.getMessage()
    others = lambda record: 'orbax' not in pathlib.Path(record.pathname).parts
    sys.unraisablehook = unraisable
    of_asyncio.addFilter(heard)
    of_orbax.addFilter(others)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        of_asyncio.removeFilter(heard)
        of_orbax.removeFilter(others)
