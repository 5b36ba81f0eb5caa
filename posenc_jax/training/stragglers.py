"""Which process of a training waits longest for its data, and so makes all others wait.

The steps take the same time in every process, because the processes wait for each other in them.
What a process does alone, between the steps, is to read a batch and to put it on its devices.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

# The slowest process is named from this multiple of the others' time on, if the difference is at
# least this part of the time of all steps.
_RATIO, _PART = 1.5, 0.1


class DataClock:
    """Measures how long this process waits for its data, and compares it with the others."""

    def __init__(self):
        self._waited, self._begun = 0.0, time.perf_counter()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The time inside is time in which this process waits for its data."""
        begun = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begun

    def slowest(self) -> str:
        """What `straggler` says of the time since the last call. All processes call it after the
        same step; one process alone compares nothing.
        """
        if jax.process_count() == 1:
            return ''
        from jax.experimental import multihost_utils

        waits = multihost_utils.process_allgather(np.float32(self._waited))
        whole = time.perf_counter() - self._begun
        self._waited, self._begun = 0.0, time.perf_counter()
        return straggler(np.ravel(waits).tolist(), whole)


def straggler(waits: Sequence[float], whole: float) -> str:
    """Names the process that waits much longer for its data than the others; '' if none does.

    Args:
      waits: seconds, by number of the process; two or more.
      whole: seconds of the steps in which they waited.

    Example:
      >>> straggler([1.0, 1.1, 0.9, 2.1], 5.0)
      'process 3 waits 2.1x as long for its data'
    """
    longest = max(waits)
    number = list(waits).index(longest)
    others = statistics.median([*waits[:number], *waits[number + 1 :]])
    if longest < _RATIO * others or longest - others < _PART * whole:
        return ''
    times = f'{longest / others:.1f}x' if longest < 100 * others else 'over 100x'
    return f'process {number} waits {times} as long for its data'
