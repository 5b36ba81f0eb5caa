"""Keeps to itself what the libraries that read and write checkpoints print beside the exceptions
that they raise.
"""

import asyncio
import functools
import inspect
import logging
import pathlib
import sys
import warnings


@functools.cache
def hush_orbax() -> None:
    """From now on hides the log of orbax, and what is printed of the other reads where one of many
    that run side by side fails.

    The first failure ends the event loop of orbax. Reads that end later, at a time that nobody
    knows, cannot tell it, and those that were under way are dropped: Python reports both as
    exceptions that nobody can catch, and the logger of asyncio reports the futures of those that
    failed when they are collected. What matters is raised.
    """
    hook = sys.unraisablehook

    def unraisable(found):
        late = (
            isinstance(found.exc_value, RuntimeError)
            and str(found.exc_value) == 'Event loop is closed'
        )
        if not (
            late
            or inspect.iscoroutine(found.object)
            and _of_orbax(found.object.cr_code.co_filename)
        ):
            hook(found)

    sys.unraisablehook = unraisable
    logging.getLogger(asyncio.__name__).addFilter(
        lambda record: 'exception was never retrieved' not in record.getMessage()
    )
    logging.getLogger('absl').addFilter(lambda record: not _of_orbax(record.pathname))
    warnings.filterwarnings(
        'ignore', "coroutine '_read_array_.*' was never awaited", RuntimeWarning
    )


def _of_orbax(path: str) -> bool:
    return 'orbax' in pathlib.Path(path).parts
