"""Processes that work together watch each other. When one of them is gone, the others end with a
message of one line.

JAX alone notices late and aborts with a long stack trace. Here every process starts a watcher, a
small process that runs `watcher.py` beside this file as a script. It is a separate process because
the process it watches may wait inside JAX, where no Python thread can run. Both files import the
standard library alone, so that a watcher starts at once.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

FAILED = 1  # exit status of a run that failed although its command is right
_GRACE = 5.0  # seconds in which a process may itself raise the error that another has reported
# Parts of error messages that come from another process or from the network.
_ELSEWHERE = (
    'Gloo',
    'gloo',
    'NCCL',
    'nccl',
    'UNAVAILABLE',
    'DEADLINE_EXCEEDED',
    'oordination service',
    'Socket closed',
)


class ClusterError(RuntimeError):
    """Processes that should work together did not connect; the message names those that are
    missing and how long they were waited for.
    """


class Peers:
    """The other processes of a cluster, as seen by the watcher of this process.

    Args:
      address: (host, port) of process 0.
      processes: how many there are.
      process_id: the number of this process.
      start: seconds that processes wait for each other at the start.
      silence: seconds of silence after which a process counts as gone.
      directory: the run directory, whose newest checkpoint is named in the message that ends this
        process; None where nothing is trained.
    """

    def __init__(
        self,
        address: tuple[str, int],
        processes: int,
        process_id: int,
        *,
        start: float,
        silence: float,
        directory: pathlib.Path | None,
    ):
        asked = dict(
            address=address, count=processes, own=process_id, start=start, silence=silence,
            directory=str(directory or ''),
            program=pathlib.Path(sys.argv[0]).name, process=os.getpid(), grace=_GRACE,
        )  # fmt: skip
        self._silence, self._failed, self._left = silence, False, threading.Event()
        self.watcher = subprocess.Popen(
            [sys.executable, pathlib.Path(__file__).with_name('watcher.py'), json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def meet(self) -> str:
        """Waits for all processes. Returns the address where the client of JAX finds the service of
        JAX; process 0 must start that service at this address.

        Raises:
          ValueError: the address cannot be used, or process 0 has another number of processes.
          ClusterError: a process did not connect in time.
        """
        what, _, text = self.watcher.stdout.readline().strip().partition(' ')
        if what != 'met':
            raise (ValueError if what == 'refused' else ClusterError)(
                text or 'the watcher of this process is gone'
            )
        threading.Thread(target=self._hear, daemon=True).start()
        return text

    def leave(self, shutdown: Callable[[], None]) -> None:
        """Ends training together with the others.

        Args:
          shutdown: that of JAX, which waits for all processes. Process 0 goes last, because the
            others communicate through it.
        """
        self._ask('leaving')
        shutdown()
        self._ask('bye')
        self._left.wait()

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """A context that tells the others of an error of this process, once. An error that came
        from another process is left to that process.
        """
        try:
            yield
        except BaseException as error:
            if not self._failed:
                self._failed = True
                if any(words in str(error) for words in _ELSEWHERE):
                    # Meanwhile the watcher notices the process that is gone, and ends this one.
                    time.sleep(self._silence + _GRACE)
                self._ask(
                    f'failed {type(error).__name__}: {(str(error).splitlines() or [""])[0][:300]}'
                )
            raise

    def _ask(self, line: str) -> None:
        self.watcher.stdin.write(line + '\n')

    def _hear(self) -> None:
        for line in self.watcher.stdout:
            if line == 'left\n':
                self._left.set()
                return
            if line == 'end\n':  # the watcher has printed why
                if sys.stdout.isatty():
                    print('\x1b[?25h', flush=True)  # shows the cursor, which a progress bar hides
                os._exit(FAILED)
        if not self._failed:
            print(
                f'{pathlib.Path(sys.argv[0]).name}: the watcher of this process is gone',
                file=sys.stderr,
                flush=True,
            )
            os._exit(FAILED)
