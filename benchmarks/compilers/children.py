"""Calls in processes of their own, because compilers end their process instead of an error."""

import math
import multiprocessing
import os
import resource
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

from benchmarks.compilers.reports import last_line

# Programs whose imports all children share. They touch no backend of JAX.
_SHARED = [f'benchmarks.compilers.{name}' for name in ('gpu', 'steps', 'tpu')]


_SLOWER = 6  # times that a busy machine may be slower


class Refused(Exception):
    """A compiler compiled nothing; the message is its reason."""


def call(function: Callable, *arguments: Any, seconds: int, environment=None) -> Any:
    """The result of a function in a new process.

    Args:
      function: of a module, which a new process finds by its name.
      seconds: of processor time that the call has.
      environment: variables of the process.

    Raises:
      Refused: the call raised an error, its process ended, or the time was over.
    """
    server = multiprocessing.get_context('forkserver')
    server.set_forkserver_preload(_SHARED)
    here, there = server.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile('r', errors='replace') as said:
        task = function, arguments, seconds, environment or {}, said.name, there
        child = server.Process(target=_run, args=task)
        child.start()
        there.close()  # so that the end of the child is the end of the pipe
        try:
            # A compiler may also wait for ever, without using the processor.
            found = (
                here.recv() if here.poll(_SLOWER * seconds) else (None, f'not within {seconds} s')
            )
        except EOFError:
            found = None, ''
        if found[1]:
            child.kill()
        child.join()
        if found == (None, ''):
            late = child.exitcode in (-24, -9)  # SIGXCPU, SIGKILL
            why = f'not within {seconds} s' if late else last_line(said.read())
            found = None, why if late else f'the compiler ends with {child.exitcode}: {why}'
    if found[1]:
        raise Refused(found[1])
    return found[0]


def _run(function, arguments, seconds, environment, said, answer):
    os.environ.update(environment)
    descriptor = os.open(said, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), most))
    try:
        answer.send((function(*arguments), ''))
    except Exception as error:  # of many kinds
        traceback.print_exc()
        answer.send((None, str(error) or type(error).__name__))
