"""Disturbs trainings of two processes in five ways and continues them: nothing may be lost.

Command:  python benchmarks/faults.py [--only killed] [--repeats 4] [--seed 0]
Expected: '20 of 20 ended as documented, nothing lost: True'; one or two minutes for each repeat on
          two very busy CPU cores. Needs Linux and the right to mount, see benchmarks/full_disk.py.

docs/pods.md says how each fault ends. A training is disturbed and continued, again and again, by
one kind of fault. A repeat is good if both processes ended within the documented time, with the
documented status and line; if the step that the line calls safe is the newest checkpoint; if the
metrics up to it are those of an undisturbed training; and if the same command continues after it.
In the end the training must have left what an undisturbed one leaves: one line of metrics for each
step, with the same numbers, and the same arrays and place in the data in the last checkpoint.
"""

import argparse
import contextlib
import dataclasses
import errno
import multiprocessing
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[1]
os.environ |= {
    'JAX_PLATFORMS': 'cpu', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PYTHONPATH': str(ROOT), 'XLA_FLAGS': '--xla_force_host_platform_device_count=1',
}  # fmt: skip

from short_runs import NAME, arguments, in_namespaces, mount  # noqa: E402

if __name__ == '__main__':
    in_namespaces('--pid', '--fork', '--kill-child', '--mount-proc')

import orbax.checkpoint as ocp  # noqa: E402

from posenc_jax.lab.cli import train as command  # noqa: E402
from posenc_jax.lab.files import disk  # noqa: E402
from posenc_jax.lab.files.saved_steps import finished_steps  # noqa: E402
from posenc_jax.lab.runs.checkpoint import Checkpoints  # noqa: E402
from posenc_jax.lab.train import loop  # noqa: E402
from posenc_jax.lab.train.metrics_file import FILE, read_lines  # noqa: E402

# Each process is forked from one that has imported the package, and so starts at once.
FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload([loop.__name__, command.__name__, ocp.__name__, 'tensorboardX'])

STEPS_FOR_EACH = 30
START, SILENCE, GRACE = 15, 10, 5  # seconds: the two timeouts, and the pause of a watcher
# Seconds that a very busy machine may take: until a process begins to wait for the other one, for
# some steps and a checkpoint, and until the second save after a full disk, which says so at last.
BEGIN, STEP, SAVES = 60.0, 20.0, 60.0
ROOM = '64m'
FIELDS = (
    'encoding=alibi()', 'model.layers=1', 'model.width=16', 'model.heads=4', 'model.dropout=0.1',
    'train.batch=8', 'train.length=32', 'train.warmup=4', 'train.log_every=1', 'train.keep=2',
    'train.save_every=10', 'train.eval_every=0', 'eval.at_end=False', 'mesh.data=1', 'mesh.fsdp=2',
    f'cluster.start_timeout={START}', f'cluster.peer_timeout={SILENCE}',
)  # fmt: skip

PAUSE, SLOW = 0.1, 0.5  # seconds in which a process waits for a batch


def slow_data() -> None:
    """A process waits longer for its batches."""
    global PAUSE
    PAUSE = SLOW


def no_look() -> None:
    """The room is not looked at before a save, so that the files meet the full disk."""
    disk.need = lambda *_: None


def no_room() -> None:
    """The arrays of a checkpoint meet a full disk in this process alone, once `full` is there."""
    save = ocp.StandardCheckpointHandler.async_save

    async def fails(self, directory, *given, **named):
        if (directory.parents[3] / 'full').exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return await save(self, directory, *given, **named)

    ocp.StandardCheckpointHandler.async_save = fails


def train(given: list[str], out: pathlib.Path, errors: pathlib.Path, before) -> None:
    """What a process does: `python train.py`, with its outputs in files."""
    for stream, path in (1, out), (2, errors):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(ROOT)
    if before:
        before()
    put = loop.device_batch
    loop.device_batch = lambda *given: (time.sleep(PAUSE), put(*given))[1]
    sys.argv = ['train.py', *given]
    command.main()


class Pair:
    """Two processes that train together in a folder.

    Args:
      workdir: the folder.
      steps: the last step.
      before: what a process does before it trains, by its number.
    """

    def __init__(self, workdir: pathlib.Path, steps: int, before: dict[int, Callable]):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        self.directory = workdir / NAME
        self._said, self.processes = tempfile.TemporaryDirectory(), []
        common = arguments((*FIELDS, f'train.steps={steps}'), workdir)
        for number in (0, 1):
            own = f'--coordinator=127.0.0.1:{port}', '--processes=2', f'--process_id={number}'
            files = self._file(number, 'out'), self._file(number, 'errors')
            for file in files:
                file.touch()
            given = [*common, *own], *files, before.get(number)
            self.processes.append(FORKS.Process(target=train, args=given, daemon=True))
            self.processes[-1].start()

    def _file(self, number: int, what: str) -> pathlib.Path:
        return pathlib.Path(self._said.name, f'{number}.{what}')

    def out(self) -> str:
        """What process 0 has printed."""
        return self._file(0, 'out').read_text()

    def errors(self, number: int) -> str:
        """What a process has printed on stderr."""
        return self._file(number, 'errors').read_text()

    def step(self) -> int:
        """The last step that process 0 has reported in this pair; 0 before the first."""
        return max(map(int, re.findall(r'^step (\d+)/', self.out(), re.M)), default=0)

    def signal(self, number: int, which: int) -> None:
        os.kill(self.processes[number].pid, which)

    def runs(self) -> bool:
        return all(process.exitcode is None for process in self.processes)

    def reach(self, condition: Callable[[], object]) -> None:
        """Waits until the condition is true or a process has ended."""
        while self.runs() and not condition():
            time.sleep(0.005)

    def wait(self, seconds: float) -> list[int]:
        """The statuses of both; a process that has not ended in time is killed."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0.01))
        for process in self.processes:
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes]


@dataclasses.dataclass
class Fault:
    """One disturbance and how it is documented to end.

    Attributes:
      what: a remark for the table.
      does: what happens to the pair.
      status, line: of each process, its exit status and a pattern of what it prints on stderr.
      within: seconds in which both have ended.
      training: whether it happens after a step, otherwise while the processes start.
      before: see `Pair`.
      out: a pattern of what process 0 prints on stdout.
    """

    what: str
    does: Callable[[Pair], object]
    status: tuple[int, int]
    line: tuple[str, str]
    within: float
    training: bool = True
    before: dict[int, Callable] = dataclasses.field(default_factory=dict)
    out: str = ''


SAFE = r'(step \d+ is safe; .* continues after it|no step is saved; .* begins anew)\n'
STOPPED = r'stopped after step \d+, which is saved; the same command continues'
AT = r'127.0.0.1:\d+'
CAUGHT = r'(W.* SIGTERM caught at .*\n)?'  # what JAX itself logs in the process that got it


def killed(repeat: int) -> Fault:
    return gone(1, repeat, 'process 1 of 2')


def coordinator(repeat: int) -> Fault:
    return gone(0, repeat, 'process 0 of 2, the coordinator,')


def gone(number: int, repeat: int, name: str) -> Fault:
    """One is killed: in every fourth repeat while the processes start, when the other may have to
    wait for it.
    """
    line = rf'train.py: {name} is gone: its connection closed unexpectedly; {SAFE}'
    starts = repeat % 4 == 0
    if starts:
        line += (
            rf'|train.py: (the coordinator, process 0 at {AT}, could not be reached within'
            rf'|process 0 at {AT} did not begin within|process 1 of 2 did not connect to {AT} '
            rf'within) {START} s .*{SAFE}'
        )
    does = lambda pair: pair.processes[number].kill()
    both = lambda own, other: (own, other) if number == 0 else (other, own)
    within = 3.0 + (START + BEGIN) * starts
    return Fault('at the start' * starts, does, both(-9, 1), both('', line), within, not starts)


def asked(repeat: int) -> Fault:
    """SIGTERM on one: both save the same step and end."""
    number = repeat % 2
    does = lambda pair: pair.signal(number, signal.SIGTERM)
    return Fault(f'process {number}', does, (0, 0), (CAUGHT, CAUGHT), STEP, out=STOPPED)


def full(repeat: int) -> Fault:
    """The disk is full: for both, with and without a look before a save, or for process 1 alone."""
    own = rf'train.py: the disk is full: .*{SAFE}'
    told = rf'train.py: process {{}} of 2 ended with DiskFullError: the disk is full: .*{SAFE}'
    does = lambda pair: fill(pair.directory.parent)
    if repeat % 2:
        mark = lambda pair: (pair.directory.parent / 'full').touch()
        lines = (told.format(1), own)
        return Fault('writes of process 1', mark, (1, 2), lines, SAVES, before={1: no_room})
    before = {0: no_look, 1: no_look} if repeat % 4 else {}
    what = 'while writing' if repeat % 4 else 'before a save'
    return Fault(what, does, (2, 1), (own, told.format(0)), SAVES, before=before)


def fill(where: pathlib.Path) -> None:
    """Takes nearly all free room of a file system."""
    room = os.statvfs(where)
    with (where / 'full').open('wb') as ballast, contextlib.suppress(OSError):
        ballast.write(bytes(room.f_bavail * room.f_frsize - 16384))


def slow(repeat: int) -> Fault:
    """A process is slow with its data, or stands still for a while, or for good."""
    if repeat % 2 == 0:  # is named while both train; they are then asked to stop
        named = r'process 1 waits [\d.]+x as long for its data'

        def does(pair):
            pair.reach(lambda: re.search(named, pair.out()))
            pair.signal(0, signal.SIGTERM)

        out = f'(?s){named}.*{STOPPED}'
        return Fault(
            'its data', does, (0, 0), (CAUGHT, CAUGHT), STEP, before={1: slow_data}, out=out
        )
    if repeat % 4 == 1:

        def does(pair):
            pair.signal(0, signal.SIGSTOP)
            time.sleep(SILENCE / 2)
            pair.signal(0, signal.SIGCONT)
            step = pair.step()
            pair.reach(lambda: pair.step() > step + 2)  # both go on
            pair.signal(0, signal.SIGTERM)

        return Fault(f'{SILENCE / 2:g} s still', does, (0, 0), (CAUGHT, CAUGHT), STEP, out=STOPPED)
    does = lambda pair: pair.signal(1, signal.SIGSTOP)
    line = rf'train.py: process 1 of 2 is gone: nothing was heard of it for {SILENCE} s .*{SAFE}'
    return Fault('still for good', does, (1, -9), (line, line), SILENCE + 2 * GRACE + 5.0)


FAULTS = {
    'disk full on one': full,
    'slow one': slow,
    'SIGTERM on one': asked,
    'coordinator gone': coordinator,
    'killed': killed,
}


def metrics(directory: pathlib.Path) -> list[dict]:
    """The lines of metrics without times and speeds."""
    path = directory / FILE
    return [
        {name: value for name, value in line.items() if name not in ('time', 'tokens_per_second')}
        for line in (read_lines(path) if path.exists() else [])
    ]


def left_behind(directory: pathlib.Path) -> dict:
    """What a finished training leaves: all but times and speeds."""
    with Checkpoints(directory) as checkpoints:
        last = checkpoints.entries(max(checkpoints.steps()))
    kept = {name: last[name] for name in ('step', 'iterator', 'fingerprints')}
    return {'metrics': metrics(directory), **kept}


def safe_step(pair: Pair) -> int:
    return max(finished_steps(pair.directory), default=0)


def attempt(name: str, fault: Fault, start: Callable[..., Pair], expected: list, rng) -> bool:
    """Prints one row of the table and returns whether it is good."""
    pair = start(fault.before)
    saved, steps, pause = safe_step(pair), rng.randint(1, 10), rng.uniform(0, 0.1)
    if fault.training:
        pair.reach(lambda: pair.step() >= saved + steps)
    else:
        pause = rng.uniform(0, 15)
    time.sleep(pause)
    problems, at = [] if pair.runs() else ['ended before the fault'], pair.step()
    begun = time.monotonic()
    fault.does(pair)
    status = pair.wait(fault.within + 30.0)
    seconds = time.monotonic() - begun
    if tuple(status) != fault.status:
        problems.append(f'statuses {status}')
    if seconds > fault.within:
        problems.append(f'later than {fault.within:g} s')
    for number in (0, 1):
        if not re.fullmatch(fault.line[number], pair.errors(number)):
            problems.append(f'process {number} said {pair.errors(number)!r}')
    if not re.search(fault.out, pair.out()):
        problems.append(f'process 0 did not say {fault.out!r}')
    if saved and at and not re.search(rf'^continuing after step {saved} of', pair.out(), re.M):
        problems.append(f'did not continue after step {saved}')
    safe = safe_step(pair)
    called = pair.errors(0) + pair.errors(1) + pair.out()
    if any(int(step) != safe for step in re.findall(r'step (\d+)(?:, which)? is sa', called)):
        problems.append(f'the newest checkpoint is {safe}')
    found = [line for line in metrics(pair.directory) if line['step'] <= safe]
    if lost := found != [line for line in expected if line['step'] <= safe]:
        problems.append(f'other metrics up to step {safe}')
    lost = 'metrics' if lost else f'nothing, {max(pair.step() - safe, 0)} steps computed again'
    where = f'{name} ({fault.what})' if fault.what else name
    when = f'step {at}' if at else f'{pause:.0f} s'
    print(f'{where}, {when} | {"; ".join(problems) or "yes"} | {seconds:.1f} | {lost}', flush=True)
    (pair.directory.parent / 'full').unlink(missing_ok=True)
    return not problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', choices=[name.split()[0] for name in FAULTS])
    parser.add_argument('--repeats', type=int, default=4, help='how often each fault happens')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--inside', action='store_true', help=argparse.SUPPRESS)
    asked = parser.parse_args()
    folder, steps, good = tempfile.TemporaryDirectory, STEPS_FOR_EACH * asked.repeats, []
    with folder() as whole, folder() as places, folder() as cache:
        os.environ['JAX_COMPILATION_CACHE_DIR'] = cache
        undisturbed = Pair(pathlib.Path(whole), steps, {})
        if undisturbed.wait(600.0) != [0, 0]:
            sys.exit(f'the undisturbed run failed: {undisturbed.errors(0)}{undisturbed.errors(1)}')
        expected = left_behind(undisturbed.directory)
        print('fault | ended as documented | seconds to the end | what was lost')
        for name, fault in FAULTS.items():
            if asked.only not in (None, name.split()[0]):
                continue
            place = pathlib.Path(places, name.split()[0])
            mount(place, ROOM)
            start = lambda before, place=place: Pair(place, steps, before)
            rng = random.Random(f'{asked.seed} {name}')
            for repeat in range(asked.repeats):
                good.append(attempt(name, fault(repeat), start, expected['metrics'], rng))
            last = start({})
            status, said = last.wait(600.0), last.errors(0) + last.errors(1)
            equal = status == [0, 0] and left_behind(last.directory) == expected
            print(f'{name}, continued to step {steps}: all equal: {equal} {said}', flush=True)
            good[-1] &= equal
            subprocess.run(['umount', place], check=True)
    print(f'{sum(good)} of {len(good)} ended as documented, nothing lost: {all(good)}')
    sys.exit(not all(good))


if __name__ == '__main__':
    main()
