"""A target of `benchmarks.fuzz` that fails in every way that the program detects."""

import os
import pathlib
import random
import signal
import time

from benchmarks.fuzz.target import CANARY, Target

KINDS = (
    'read', 'refused', 'traceback', 'lines', 'controls', 'changed', 'added', 'crash', 'exit',
    'hang', 'memory',
)  # fmt: skip


def make(rng: random.Random, good, own) -> tuple[str, pathlib.Path | None]:
    return rng.choice(KINDS), own


def read(given: tuple[str, pathlib.Path]) -> None:
    kind, own = given
    match kind:
        case 'refused':
            raise ValueError('train.steps must be at least 1, got 0')
        case 'traceback':
            raise KeyError('step')
        case 'lines':
            raise ValueError('one\ntwo')
        case 'controls':
            raise ValueError('a \x1b[31mred line')
        case 'changed':
            own.with_name(CANARY).write_text('')
        case 'added':
            own.with_name('new').touch()
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


TARGET = Target(make=make, read=read, show=lambda given: given[0])
