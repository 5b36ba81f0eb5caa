"""Processes that train together watch each other, so that one that is gone ends the others with one
line.

JAX alone notices late and aborts with a page of stack. Here every process has a watcher, a small
process of its own, which runs `watcher.py` beside this file as a script: it must go on where the
other waits within JAX and lets no thread of Python run. Both files import nothing but the standard
library, so that they start at once.
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

FAILED = 1  # exit status: nothing is wrong with the command, which may be started again
_GRACE = 5.0  # seconds in which a process may find for itself what another one failed with
# What errors say that come from another process, or from the network.
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
    """Processes that should train together did not meet; the message says who was waited for, and
    how long.
    """


class Peers:
    """The other processes of a cluster, through the watcher of this one.

    Args:
      address: (host, port) of process 0.
      processes, process_id: how many there are, and which one this is.
      start: seconds that processes wait for each other at the start.
      silence: seconds after which a process that is not heard of counts as gone.
      directory: of the run, whose newest checkpoint is told in the line that ends this process.
    """

    def __init__(
        self,
        address: tuple[str, int],
        processes: int,
        process_id: int,
        *,
        start: float,
        silence: float,
        directory: pathlib.Path,
    ):
        asked = dict(
            address=address, count=processes, own=process_id, start=start, silence=silence,
            directory=str(directory),
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
        """Waits for all processes; returns the address at which JAX's client finds its service,
        which process 0 must start there.

        Raises:
          ValueError: the address cannot be listened at, or process 0 counts otherwise.
          ClusterError: somebody never came.
        """
        what, _, text = self.watcher.stdout.readline().strip().partition(' ')
        if what != 'met':
            raise (ValueError if what == 'refused' else ClusterError)(
                text or 'the watcher of this process is gone'
            )
        threading.Thread(target=self._hear, daemon=True).start()
        return text

    def leave(self, shutdown: Callable[[], None]) -> None:
        """Ends together: `shutdown` is JAX's, which waits for all; process 0, through which they
        speak, goes last.
        """
        self._ask('leaving')
        shutdown()
        self._ask('bye')
        self._left.wait()

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Within, an error of this process is told to the others, once; one that comes from another
        is left for that to tell.
        """
        try:
            yield
        except BaseException as error:
            if not self._failed:
                self._failed = True
                if any(words in str(error) for words in _ELSEWHERE):
                    time.sleep(
                        self._silence + _GRACE
                    )  # whoever is gone is noticed meanwhile, which ends this process
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
            if line == 'end\n':  # which the watcher has said why
                if sys.stdout.isatty():
                    print('\x1b[?25h', flush=True)  # the cursor, which a live line hides
                os._exit(FAILED)
        if not self._failed:
            print(
                f'{pathlib.Path(sys.argv[0]).name}: the watcher of this process is gone',
                file=sys.stderr,
                flush=True,
            )
            os._exit(FAILED)
