"""Runs tries in processes that are watched: for how they end, for how long they take, and for the
memory they hold.
"""

import collections
import contextlib
import importlib
import multiprocessing
import os
import pathlib
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator

from benchmarks.fuzz.target import CANARY, Target, problem

# Read by the processes of the tries: they compile much and compute little.
os.environ.setdefault(
    'XLA_FLAGS', '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)
SECONDS, BYTES = 10, 4 * 2**30
# times as many seconds by the clock: the machine may be busy, and the process may wait without
# computing
WAITING = 6
STARTING = (
    120  # seconds a process may take to import and to read its first input, which is part of no try
)
STARTS = 3  # processes in a row that may end before their first try
RENEWED = (
    1000  # tries after which a process is replaced, since what it compiled stays in its memory
)


# Processes begin as copies of one that has imported what takes long. It has used no device, so it
# has no threads of JAX, which a copy would lack; the import of a target may use one.
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(
    [
        'posenc_jax.lab.train.loop',
        'posenc_jax.lab.cli.generate',
        'orbax.checkpoint',
        'tensorboardX',
        'grain',
    ]
)


def load(name: str) -> Target:
    """The target of a module of this folder, or of one elsewhere by its full name."""
    return importlib.import_module(name if '.' in name else f'benchmarks.fuzz.{name}').TARGET


def in_memory(path: str = '/dev/shm', room: int = 8 * 2**30) -> str | None:
    """A folder of the main memory for the files of the tries, which are many and small; None where
    there is none with room.
    """
    there = os.path.isdir(path) and os.access(path, os.W_OK)
    return path if there and shutil.disk_usage(path).free >= room else None


@contextlib.contextmanager
def folder_of_try(beside: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder for a try, with the file `CANARY` beside it; both are removed at the end."""
    outer = pathlib.Path(tempfile.mkdtemp(dir=beside))
    try:
        (outer / CANARY).write_text('This file is not of the try.\n')
        (outer / 'own').mkdir()
        yield outer / 'own'
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def surroundings(own: pathlib.Path) -> tuple:
    """What lies beside the folder of a try, and the state of the file `CANARY`."""
    canary = own.with_name(CANARY)
    found = canary.stat() if canary.exists() else None
    state = found and (found.st_ino, found.st_mode, canary.read_bytes())
    return sorted(path.name for path in own.parent.iterdir()), state


def outcome(target: Target, given: object, own: pathlib.Path) -> tuple[str, BaseException | None]:
    """What is wrong with how an input was read, '' for nothing; and the error that it raised."""
    before, found, wrong = surroundings(own), None, None
    try:
        target.read(given)
    except Exception as error:
        found, wrong = error, problem(error)
    if not wrong and surroundings(own) != before:
        wrong = 'something outside of the folder of the try was changed'
    return wrong or '', found


def attempt(
    target: Target, name: str, seed: int, number: int, folder: pathlib.Path
) -> tuple[str, str]:
    """One try: 'read', 'refused' or 'failed', and the message or the exception."""
    with folder_of_try(folder.parent) as own:
        given = target.make(random.Random(f'{name} {seed} {number}'), folder, own)
        wrong, error = outcome(target, given, own)
        if wrong:
            return 'failed', f'{wrong}; input {target.show(given)[:500]}'
        return ('read', '') if error is None else ('refused', str(error))


def work(name: str, seed: int, numbers: list[int], folder: str, pipe) -> None:
    """The watched process: says which try begins, and how it ended."""
    target = load(name)
    pipe.send(('ready', '', ''))
    for number in numbers:
        # Asked for by the watcher, these would perhaps be of the try already.
        before = memory(os.getpid()), processor(os.getpid())
        pipe.send(('begin', number, before))
        pipe.send((*attempt(target, name, seed, number, pathlib.Path(folder)), number))
    pipe.send(('end', '', ''))


def memory(pid: int) -> int:
    """Bytes of main memory that a process holds."""
    try:
        return int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf(
            'SC_PAGE_SIZE'
        )
    except (OSError, IndexError):
        return 0


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    try:
        fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def watch(
    name: str,
    seed: int,
    numbers: list[int],
    folder: str,
    outcomes: collections.Counter,
    failures: list,
) -> None:
    """Runs the tries, in a new process after each that ended its process or had to be ended."""
    starts = 0
    while numbers and starts < STARTS:
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(
            target=work, args=(name, seed, numbers[:RENEWED], folder, theirs), daemon=True
        )
        process.start()
        theirs.close()
        # What the process has imported at its start is of no try.
        held = memory(process.pid)
        current, limit, computed, why = None, time.monotonic() + STARTING, STARTING, ''
        while not why:
            try:
                if ours.poll(0.05):
                    kind, text, number = ours.recv()
                    if kind == 'end':
                        why = kind
                    elif kind == 'begin':
                        current, limit = text, time.monotonic() + WAITING * SECONDS
                        # What earlier tries left compiled is not of this one.
                        held, computed = number[0], number[1] + SECONDS
                    elif kind != 'ready':
                        outcomes[kind] += 1
                        if kind == 'failed':
                            failures.append((number, text))
                        current, numbers, starts = None, numbers[numbers.index(number) + 1 :], 0
                    continue
            except (EOFError, ConnectionError):
                process.join()
                why = f'the process ended with status {process.exitcode}'
                break
            if memory(process.pid) - held > BYTES:
                why = f'more than {BYTES >> 30} GiB of memory'
            elif processor(process.pid) > computed:
                why = f'more than {SECONDS} seconds of processor time'
            elif time.monotonic() > limit:
                why = f'more than {WAITING * SECONDS} seconds'
        if why == 'end':
            process.join()
            continue
        process.kill()
        process.join()
        if current is None:
            starts += 1
            print(
                f'{name}: {why} outside of a try, so another process is started',
                file=sys.stderr,
                flush=True,
            )
            continue
        outcomes['failed'] += 1
        failures.append((current, why))
        numbers, starts = numbers[numbers.index(current) + 1 :], 0


def fuzz(
    name: str, seed: int, tries: int, workers: int
) -> tuple[collections.Counter, list[tuple[int, str]]]:
    """How many tries ended how, and number and reason of those that failed."""
    outcomes, failures = collections.Counter(), []
    with tempfile.TemporaryDirectory(prefix='fuzz_', dir=in_memory()) as folder:
        good = pathlib.Path(folder, 'good')
        good.mkdir()
        prepared = CONTEXT.Process(target=prepare, args=(name, str(good)))
        prepared.start()
        prepared.join()
        if prepared.exitcode:
            sys.exit(f'{name}: what the tries start from could not be made')
        threads = [
            threading.Thread(
                target=watch,
                args=(name, seed, list(range(part, tries, workers)), str(good), outcomes, failures),
            )
            for part in range(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return outcomes, sorted(failures)


def prepare(name: str, folder: str) -> None:
    load(name).prepare(pathlib.Path(folder))


def once(name: str, seed: int, number: int) -> None:
    """One try in this process."""
    target = load(name)
    with (
        tempfile.TemporaryDirectory(prefix='fuzz_', dir=in_memory()) as folder,
        folder_of_try(pathlib.Path(folder)) as own,
    ):
        good = pathlib.Path(folder, 'good')
        good.mkdir()
        target.prepare(good)
        given = target.make(random.Random(f'{name} {seed} {number}'), good, own)
        print(target.show(given))
        wrong, error = outcome(target, given, own)
        if error is not None:
            traceback.print_exception(error)
        print(wrong or ('read' if error is None else 'refused in one line'))
