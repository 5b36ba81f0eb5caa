"""Calls in processes of their own, because compilers end their process instead of an error."""

import contextlib
import math
import multiprocessing
import os
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.compilers.reports import last_line

# Programs whose imports all children share. They touch no backend of JAX.
_SHARED = [f'benchmarks.compilers.{name}' for name in ('gpu', 'hopper', 'steps', 'tpu')]


_SLOWER = 6  # times that a busy machine may be slower


class Refused(Exception):
    """A compiler compiled nothing; the message is its reason."""


class NotLowered(Exception):
    """There is no program for a compiler; the message says why."""


def call(function: Callable, *arguments: Any, seconds: int, environment=None) -> Any:
    """The result of a function in a new process.

    Args:
      function: of a module, which a new process finds by its name.
      seconds: of processor time that the call has.
      environment: variables of the process.

    Raises:
      NotLowered: the call raised it.
      Refused: the call raised another error, its process ended, or the time was over.
    """
    server = multiprocessing.get_context('forkserver')
    server.set_forkserver_preload(_SHARED)
    here, there = server.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile('r', errors='replace') as said:
        task = function, arguments, seconds, environment or {}, said.name, there
        child = server.Process(target=_run, args=task)
        child.start()
        there.close()  # so that the end of the child is the end of the pipe
        result, error = None, None
        try:
            # A compiler may also wait for ever, without using the processor.
            if here.poll(_SLOWER * seconds):
                result, error = here.recv()
            else:
                child.kill()
        except EOFError:
            pass
        child.join()
        if child.exitcode:
            late = child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
            why = f'the compiler ends with {child.exitcode}: {last_line(said.read())}'
            error = Refused(f'not within {seconds} s' if late else why)
    if error:
        raise error
    return result


@contextlib.contextmanager
def lowering() -> Iterator[None]:
    """In this scope, errors are `NotLowered`."""
    try:
        yield
    except Exception as error:  # of many kinds
        raise NotLowered(str(error)) from error


def _run(function, arguments, seconds, environment, said, answer):
    os.environ.update(environment)
    descriptor = os.open(said, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), most))
    try:
        answer.send((function(*arguments), None))
    except NotLowered as error:
        answer.send((None, error))
    except Exception as error:  # of many kinds
        answer.send((None, Refused(str(error) or type(error).__name__)))
