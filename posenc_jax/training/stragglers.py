"""Which process of a training makes all others wait: by its data, or by the speed of its device.

The steps take the same time in every process, because the processes wait for each other in them.
What a process does alone, between the steps, is to read a batch and to put it on its devices. How
fast its device is, a small computation without the others shows.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

# A process is named from this multiple of the others' time on; for its data only if the difference
# is at least this part of the time of all steps.
_RATIO, _PART = 1.5, 0.1


class Stragglers:
    """Measures how long this process waits for its data and how fast its first device computes, and
    compares both with the other processes.
    """

    def __init__(self):
        self._waited, self._begun = 0.0, time.perf_counter()
        self._alone = jax.process_count() == 1
        self._compute = None if self._alone else _computation()
        self._suspect: int | None = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside is time in which this process waits for its data."""
        begun = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begun

    def named(self) -> str:
        """What is to be said of the time since the last call; '' where no process is slow. All
        processes call it after the same step, when their devices have nothing to do; one process
        alone compares nothing.

        The process with the slowest device is named from the second call in a row on at which it is
        the slowest, because other programs can disturb one measurement.
        """
        if self._alone:
            return ''
        from jax.experimental import multihost_utils

        whole = time.perf_counter() - self._begun
        own = np.float32([self._waited, _least_time(self._compute)])
        waits, times = np.reshape(multihost_utils.process_allgather(own), (-1, 2)).T.tolist()
        self._waited, self._begun = 0.0, time.perf_counter()
        number, ratio = longest(times)
        again, self._suspect = self._suspect, number if ratio >= _RATIO else None
        slow = self._suspect is not None and self._suspect == again
        computes = f'process {number} computes {ratio:.1f}x as long' if slow else ''
        return '; '.join(filter(None, (waiting_longest(waits, whole), computes)))


def longest(times: Sequence[float]) -> tuple[int, float]:
    """The process that takes longest, and how many times the median of the others.

    Args:
      times: seconds, by number of the process; two or more.

    Example:
      >>> longest([1.0, 1.1, 0.9, 2.0])
      (3, 2.0)
    """
    most = max(times)
    number = list(times).index(most)
    others = statistics.median([*times[:number], *times[number + 1 :]])
    return number, most / others if others else float('inf') if most else 1.0


def waiting_longest(waits: Sequence[float], whole: float) -> str:
    """Names the process that waits much longer for its data than the others; '' if none does.

    Args:
      waits: seconds, by number of the process; two or more.
      whole: seconds of the steps in which they waited.

    Example:
      >>> waiting_longest([1.0, 1.1, 0.9, 2.1], 5.0)
      'process 3 waits 2.1x as long for its data'
    """
    number, ratio = longest(waits)
    if ratio < _RATIO or max(waits) * (1 - 1 / ratio) < _PART * whole:
        return ''
    times = f'{ratio:.1f}x' if ratio < 100 else 'over 100x'
    return f'process {number} waits {times} as long for its data'


def _computation() -> Callable[[], jax.Array]:
    """A computation of some milliseconds on the first device of this process, compiled."""
    device = jax.local_devices()[0]
    size, dtype = (256, jnp.float32) if device.platform == 'cpu' else (4096, jnp.bfloat16)
    factor = jax.device_put(np.full((size, size), 1 / size, dtype), device)
    times = lambda a: jax.lax.fori_loop(0, 8, lambda _, product: product @ a, a)
    with jax.set_mesh(jax.sharding.Mesh([device], ['alone'])):  # not that of the training
        run = jax.jit(times).lower(factor).compile()
    return lambda: run(factor)


def _least_time(compute: Callable[[], jax.Array]) -> float:
    """The least of three times, because other programs only add to it."""
    found = []
    for _ in range(3):
        begun = time.perf_counter()
        compute().block_until_ready()
        found.append(time.perf_counter() - begun)
    return min(found)
