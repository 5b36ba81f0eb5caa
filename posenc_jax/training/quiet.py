"""Keeps to itself what libraries print beside the exception that they raise."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_reads() -> Iterator[None]:
    """Hides what is printed of the other reads where one of many that run side by side fails: its exception says it already.

    The first failure ends the event loop of orbax. Reads that end later cannot tell it, which Python reports as an exception
    that nobody can catch, and the futures of those that failed are reported by the logger of asyncio when they are collected.
    """
    hook, logger = sys.unraisablehook, logging.getLogger(asyncio.__name__)

    def unraisable(found):
        if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == 'Event loop is closed'):
            hook(found)

    unread = lambda record: 'exception was never retrieved' not in record.getMessage()
    sys.unraisablehook = unraisable
    logger.addFilter(unread)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.removeFilter(unread)
