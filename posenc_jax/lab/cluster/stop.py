"""SIGTERM and Ctrl-C, which end a training early."""

import os
import signal
import threading

import jax

from posenc_jax.base import interrupts


class StopSignal:
    """Tells the loop, after every step, whether SIGTERM or Ctrl-C has asked it to stop.

    In a process that has joined a cluster (even a cluster of one) JAX handles SIGTERM, and the
    processes agree on the step at which they stop. Ctrl-C is passed on as a SIGTERM, and so is a
    signal that came while the process was joining. The first Ctrl-C prints a line at once. A second
    one ends the process at once; outside a cluster so does a second SIGTERM.
    """

    def __init__(self):
        self.asked = False  # whether this process was asked; in a cluster another one may have been
        self._joined, self._before = False, {}
        self._announced = interrupts.announced(
            lambda: (
                'stopping after the step that is computed, which is saved; Ctrl-C again ends '
                'at once'
            )
        )

    def __enter__(self) -> 'StopSignal':
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._ask)
                for number in (signal.SIGTERM, signal.SIGINT)
            }
        self._announced.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self._announced.__exit__(None, None, None)
        self._give_back(*self._before)

    def _give_back(self, *numbers: int) -> None:
        for number in numbers:
            signal.signal(number, self._before[number])

    def _ask(self, number: int, _) -> None:
        self.asked = True
        if not jax.distributed.is_initialized():
            self._give_back(*self._before)
            return
        self._give_back(signal.SIGINT)
        if self._joined:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to stop after this step. It must be called exactly once for every step."""
        if not jax.distributed.is_initialized():
            return self.asked
        if not self._joined:
            self._joined = True
            if self.asked:  # before JAX handled the signal
                os.kill(os.getpid(), signal.SIGTERM)
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
