"""Kills a short training run at random moments, starts it again each time, and compares it with an undisturbed run.

Command:  python benchmarks/kill_resume.py [--kills 10] [--seed 0]
Expected: 'equal: True'; about 15 s for each start on two CPU cores (compilation).

One kill in three comes at a random time after the start, mostly while importing, compiling or restoring; the others
come a random few milliseconds after a random later step, so that saving is hit as well.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from posenc_jax.training.metrics import FILE, read_lines

NAME = 'run'
STEPS = 200
FIELDS = (
    'encoding=randomized_pe(max_len=256) | t5_rpe()', 'model.layers=2', 'model.width=64', 'model.heads=4',
    'model.dropout=0.1', f'train.steps={STEPS}', 'train.batch=16', 'train.length=64', 'train.warmup=20',
    'train.log_every=1', 'train.eval_every=0', 'train.save_every=10', 'eval.at_end=False', f'name={NAME}',
)  # fmt: skip


def start(workdir: str) -> subprocess.Popen:
    fields = [f'--config.{field}' for field in (*FIELDS, f'workdir={workdir}')]
    command = [sys.executable, 'train.py', '--config=configs/default.py', *fields]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def losses(workdir: str) -> dict[int, float]:
    return {line['step']: line['loss'] for line in read_lines(pathlib.Path(workdir, NAME, FILE))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as killed:
        began, process = time.time(), start(whole)
        while not losses(whole) and process.poll() is None:
            time.sleep(0.01)
        startup = time.time() - began
        if process.wait():
            sys.exit('the undisturbed run failed')
        for kill in range(1, arguments.kills + 1):
            process, began = start(killed), time.time()
            reached = max(losses(killed), default=0)
            if kill % 3 == 0:
                time.sleep(rng.uniform(0, startup))
            else:
                target = reached + rng.randint(1, max(1, 2 * (STEPS - reached) // (arguments.kills - kill + 3)))
                while max(losses(killed), default=0) < min(target, STEPS - 1) and process.poll() is None:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.05))
            if process.poll() is not None:
                sys.exit(f'the run ended by itself before kill {kill}')
            process.kill()
            process.wait()
            after = time.time() - began
            print(f'kill {kill} after {after:.1f} s, at step {max(losses(killed), default=0)}', flush=True)
        if start(killed).wait():
            sys.exit('the last start failed')
        one, two = losses(whole), losses(killed)
        print(f'{len(one)} losses, {arguments.kills} kills, equal: {one == two}')
        sys.exit(one != two)


if __name__ == '__main__':
    main()
