"""The process of a training for which all others wait, because of its data or of its slow device.

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
        self._compute = _computation() if jax.process_count() > 1 else None
        self._suspect: int | None = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside is time in which this process waits for its data."""
        begun = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begun

    def named(self) -> str:
        """Names the processes that were slow since the last call; '' if none was. All processes
        call it after the same step, when their devices have nothing to do. One process alone
        compares nothing.

        A process with a slow device is named if it was the slowest in the call before too, because
        other programs can disturb one measurement.
        """
        if self._compute is None:
            return ''
        from jax.experimental import multihost_utils

        whole = time.perf_counter() - self._begun
        own = np.array([self._waited, _least_time(self._compute)], np.float32)
        waits, times = np.reshape(multihost_utils.process_allgather(own), (-1, 2)).T.tolist()
        self._waited, self._begun = 0.0, time.perf_counter()
        said = [waiting_longest(waits, whole)]
        number, most, others = longest(times)
        before, self._suspect = self._suspect, number if most >= _RATIO * others else None
        if self._suspect is not None and self._suspect == before:
            said.append(f'process {number} computes {most / others:.1f}x as long')
        return '; '.join(filter(None, said))


def longest(times: Sequence[float]) -> tuple[int, float, float]:
    """The number of the process that takes longest, its time, and the median of the others.

    Args:
      times: seconds, by number of the process; two or more.

    Example:
      >>> longest([1.0, 1.1, 0.9, 2.0])
      (3, 2.0, 1.0)
    """
    most = max(times)
    number = list(times).index(most)
    others = statistics.median([*times[:number], *times[number + 1 :]])
    return number, most, others


def waiting_longest(waits: Sequence[float], whole: float) -> str:
    """Names the process that waits much longer for its data than the others; '' if none does.

    Args:
      waits: seconds, by number of the process; two or more.
      whole: seconds of the steps in which they waited.
    """
    number, most, others = longest(waits)
    if most < _RATIO * others or most - others < _PART * whole:
        return ''
    times = f'{most / others:.1f}x' if most < 100 * others else 'over 100x'
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
