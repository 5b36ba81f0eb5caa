"""A target of `benchmarks.fuzz` that fails in every way that the program detects."""

import os
import random
import signal
import time

from benchmarks.fuzz.target import Target

KINDS = ('read', 'refused', 'traceback', 'lines', 'crash', 'exit', 'hang', 'memory')


def make(rng: random.Random, good, own) -> str:
    return rng.choice(KINDS)


def read(kind: str) -> None:
    match kind:
        case 'refused':
            raise ValueError('train.steps must be at least 1, got 0')
        case 'traceback':
            raise KeyError('step')
        case 'lines':
            raise ValueError('one\ntwo')
        case 'crash':
            os.kill(os.getpid(), signal.SIGABRT)
        case 'exit':
            os._exit(0)
        case 'hang':
            time.sleep(1000)
        case 'memory':
            held = bytearray(2**28)
            held[:: 2**12] = b'x' * 2**16  # so that all of its pages are there
            time.sleep(1000)


TARGET = Target(make=make, read=read)
