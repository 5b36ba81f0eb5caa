"""Hides what the libraries of checkpoints print in addition to the exceptions that they raise."""

import asyncio
import functools
import inspect
import logging
import pathlib
import sys
import warnings


@functools.cache
def hush_orbax() -> None:
    """Hides the log of orbax from now on, and Python's reports about reads that are abandoned.

    Orbax reads arrays concurrently. The first read that fails ends the event loop, and its
    exception is raised. Reads that end later fail with 'Event loop is closed', and reads that had
    not ended are dropped. Python reports both as exceptions that cannot be caught, and the logger
    of asyncio reports futures whose exception nobody retrieved. These reports are hidden.
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
