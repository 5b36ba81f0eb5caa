"""Kills a short run at random moments, restarts it, and compares it with an undisturbed run.

Command:  python benchmarks/kill_resume.py [--what train|search] [--kills 10] [--seed 0]
Expected: 'equal: True'; on two CPU cores each start takes about 15 s (training) or 8 s (search) to
          compile.

The run is a training of 200 steps, or a LongRoPE search with 312 genomes on a run that is trained
first. One kill in three comes at a random time after the start, mostly during imports, compilation
or restoring. The others come a few random milliseconds after a random later step or score, so that
saving is interrupted as well.
"""

import argparse
import dataclasses
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from posenc_jax.lab.train.metrics_file import FILE, read_lines  # noqa: E402

NAME = 'run'
STEPS = 200
FIELDS = (
    'encoding=randomized_pe(max_len=256) | '
    't5_rpe()', 'model.layers=2', 'model.width=64', 'model.heads=4',
    'model.dropout=0.1', f'train.steps={STEPS}', 'train.batch=16', 'train.length=64',
    'train.warmup=20',
    'train.log_every=1', 'train.eval_every=0', 'train.save_every=10', 'eval.at_end=False',
    f'name={NAME}',
)  # fmt: skip
SEARCHED = (
    'data.dataset=stdlib_code',
    'model.layers=2',
    'model.width=64',
    'model.heads=2',
    'train.steps=60',
    'train.length=64',
    'train.warmup=10',
    'train.eval_every=0',
    'eval.at_end=False',
    f'name={NAME}',
)
SEARCH = (
    '--length=256',
    '--population=32',
    '--iterations=35',
    '--parents=8',
    '--mutations=4',
    '--crossovers=4',
)
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


def train(config: str, fields: tuple[str, ...], workdir: str) -> subprocess.Popen:
    return run(
        'train.py',
        f'--config={config}',
        *(f'--config.{field}' for field in (*fields, f'workdir={workdir}')),
    )


def losses(workdir: str) -> dict[int, float]:
    return {line['step']: line['loss'] for line in read_lines(pathlib.Path(workdir, NAME, FILE))}


def training() -> Killed:
    start = lambda workdir: train('configs/default.py', FIELDS, workdir)
    done = lambda workdir: max(losses(workdir), default=0)
    return Killed(
        start, done, STEPS, lambda workdir: {f'{len(losses(workdir))} losses': losses(workdir)}
    )


def search(workdir: str) -> Killed:
    """A search on a run that is trained in `workdir` first."""
    if train('configs/quickstart.py', SEARCHED, workdir).wait():
        sys.exit('training failed')
    found = lambda folder: pathlib.Path(folder, 'found.json')

    def start(folder):
        return run(
            '-m',
            'posenc_jax.lab.longrope_search',
            f'--run={workdir}/{NAME}',
            *SEARCH,
            f'--out={found(folder)}',
        )

    def scored(folder):
        """How many genomes have been scored; the file exists while the search runs."""
        scores = found(folder).with_name('found.json.scores')
        try:
            return max(len(scores.read_text().splitlines()) - 1, 0)
        except FileNotFoundError:
            return 0

    return Killed(start, scored, SCORES, lambda folder: json.loads(found(folder).read_text()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--what', choices=('train', 'search'), default='train')
    parser.add_argument('--kills', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    folder = tempfile.TemporaryDirectory
    with folder() as source, folder() as whole, folder() as killed:
        what = training() if arguments.what == 'train' else search(source)
        began, process = time.time(), what.start(whole)
        while not what.done(whole) and process.poll() is None:
            time.sleep(0.01)
        startup = time.time() - began
        if process.wait():
            sys.exit('the undisturbed run failed')
        for kill in range(1, arguments.kills + 1):
            process, began = what.start(killed), time.time()
            reached = what.done(killed)
            if kill % 3 == 0:
                time.sleep(rng.uniform(0, startup))
            else:
                target = reached + rng.randint(
                    1, max(1, 2 * (what.total - reached) // (arguments.kills - kill + 3))
                )
                while what.done(killed) < min(target, what.total - 1) and process.poll() is None:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.05))
            if process.poll() is not None:
                sys.exit(f'the run ended by itself before kill {kill}')
            process.kill()
            process.wait()
            after = time.time() - began
            print(
                f'kill {kill} after {after:.1f} s, at {what.done(killed)} of {what.total}',
                flush=True,
            )
        if what.start(killed).wait():
            sys.exit('the last start failed')
        one, two = what.result(whole), what.result(killed)
        print(f'{", ".join(one)}, {arguments.kills} kills, equal: {one == two}')
        sys.exit(one != two)


if __name__ == '__main__':
    try:
        main()
    except ValueError as error:  # a damaged line in the metrics file
        sys.exit(f'kill_resume.py: {error}')
