"""Kills a short run at random moments, restarts it, and compares it with an undisturbed run.

Command:  python benchmarks/kill_resume.py [--what train|search] [--kills 10] [--seed 0]
Expected: 'equal: True'; on two CPU cores each start takes about 15 s (training) or 8 s (search) to
          compile.

The run is a training of 200 steps, or a LongRoPE search with 312 genomes on a run that is trained
first. One kill in three comes at a random time after the start, mostly during imports, compilation
or restoring. The others come a few random milliseconds after a random later step or score, so that
saving is interrupted as well.
"""

import dataclasses
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from measure import options, refuse
from short_runs import NAME, ROOT, arguments, losses

STEPS = 200
FIELDS = (
    'encoding=randomized_pe(max_len=256) | t5_rpe()', 'model.layers=2', 'model.width=64',
    'model.heads=4', 'model.dropout=0.1', f'train.steps={STEPS}', 'train.batch=16',
    'train.length=64', 'train.warmup=20', 'train.log_every=1', 'train.eval_every=0',
    'train.save_every=10', 'eval.at_end=False',
)  # fmt: skip
SEARCHED = (
    'data.dataset=stdlib_code', 'model.layers=2', 'model.width=64', 'model.heads=2',
    'train.steps=60', 'train.length=64', 'train.warmup=10', 'train.eval_every=0',
    'eval.at_end=False',
)  # fmt: skip
SEARCH = (
    '--length=256', '--population=32', '--iterations=35', '--parents=8', '--mutations=4',
    '--crossovers=4',
)  # fmt: skip
SCORES = 32 + 35 * 8


@dataclasses.dataclass(frozen=True)
class Killed:
    """A process that is killed and restarted.

    Attributes:
      start: folder -> a process that continues where the last process in this folder stopped.
      done: folder -> how many steps or scores are done there.
      total: steps or scores of a complete run.
      result: folder -> the results that must be equal in the end, by name.
    """

    start: Callable[[str], subprocess.Popen]
    done: Callable[[str], int]
    total: int
    result: Callable[[str], dict]


def run(*command: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)


def train(fields: tuple[str, ...], workdir: str, config: str = 'default') -> subprocess.Popen:
    return run('train.py', *arguments(fields, workdir, config))


def training() -> Killed:
    done = lambda workdir: max(losses(workdir), default=0)
    result = lambda workdir: {f'{len(losses(workdir))} losses': losses(workdir)}
    return Killed(lambda workdir: train(FIELDS, workdir), done, STEPS, result)


def search(workdir: str) -> Killed:
    """A search on a run that is trained in `workdir` first."""
    if train(SEARCHED, workdir, 'quickstart').wait():
        sys.exit('training failed')
    found = lambda folder: pathlib.Path(folder, 'found.json')

    def start(folder):
        own = f'--run={workdir}/{NAME}', *SEARCH, f'--out={found(folder)}'
        return run('-m', 'posenc_jax.lab.longrope_search', *own)

    def scored(folder):
        """How many genomes have been scored; the file exists while the search runs."""
        scores = found(folder).with_name('found.json.scores')
        try:
            return max(len(scores.read_text().splitlines()) - 1, 0)
        except FileNotFoundError:
            return 0

    return Killed(start, scored, SCORES, lambda folder: json.loads(found(folder).read_text()))


def main():
    asked = options(__doc__, what=('train', 'what is killed: train or search'), kills=10, seed=0)
    if asked.what not in ('train', 'search'):
        refuse(f"--what must be 'train' or 'search', got {asked.what!r}")
    rng = random.Random(asked.seed)
    folder = tempfile.TemporaryDirectory
    with folder() as source, folder() as whole, folder() as killed:
        what = training() if asked.what == 'train' else search(source)
        began, process = time.time(), what.start(whole)
        while not what.done(whole) and process.poll() is None:
            time.sleep(0.01)
        startup = time.time() - began
        if process.wait():
            sys.exit('the undisturbed run failed')
        for kill in range(1, asked.kills + 1):
            process, began = what.start(killed), time.time()
            reached = what.done(killed)
            if kill % 3 == 0:
                time.sleep(rng.uniform(0, startup))
            else:
                left = 2 * (what.total - reached) // (asked.kills - kill + 3)
                target = reached + rng.randint(1, max(1, left))
                while what.done(killed) < min(target, what.total - 1) and process.poll() is None:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.05))
            if process.poll() is not None:
                sys.exit(f'the run ended by itself before kill {kill}')
            process.kill()
            process.wait()
            after = time.time() - began
            done = f'{what.done(killed)} of {what.total}'
            print(f'kill {kill} after {after:.1f} s, at {done}', flush=True)
        if what.start(killed).wait():
            sys.exit('the last start failed')
        one, two = what.result(whole), what.result(killed)
        print(f'{", ".join(one)}, {asked.kills} kills, equal: {one == two}')
        sys.exit(one != two)


if __name__ == '__main__':
    try:
        main()
    except ValueError as error:  # a damaged line in the metrics file
        sys.exit(f'kill_resume.py: {error}')
