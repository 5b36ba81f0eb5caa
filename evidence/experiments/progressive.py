"""The progressive extension of LongRoPE, from 256 bytes of code over 1024 to 4096.

Time:      about 25 minutes on one idle core for each seed, 15 of them for the base run
Number:    docs/results/pretrained_extension.md, "Progressive extension"
Measured:  the base of `evidence.experiments.text_extension`, trained in windows of 256 bytes;
           factors are searched for 1024 bytes, and the model is tuned with them for 100 steps of 2
           x 1024; factors are searched for 4096 bytes, without tuning; the list `short` is searched
           for 256 bytes. All models are scored on the same bytes, which lie all over the test text.
Paper:     Ding et al. (arXiv 2402.13753), section 4.2 and figure 4: 4k -> 256k, tuned -> 2048k.
"""

import argparse
import pathlib

from evidence.experiments.program import Program
from evidence.experiments.runs import Run, evaluate_once, searched, train_runs
from evidence.experiments.text_extension import BUDGET, LENGTH, SAME_MACHINE, STEPS, base, settings

NEAR, FAR = 4 * LENGTH, 16 * LENGTH


def found(run: str, length: int, out: pathlib.Path, documents: int) -> str:
    """The spec with the factors that a search finds."""
    return searched(run, length, BUDGET, documents=documents, out=out)['spec']


def run(options: argparse.Namespace) -> None:
    """Searches, tunes and searches again, for each seed."""
    workdir, compared = options.workdir, []
    for seed in options.seeds:
        file = lambda length: workdir / f'factors_{length}_{seed}.json'
        first = train_runs({seed: base(workdir, seed, options.steps)})[seed]
        near = found(first, NEAR, file(NEAR), documents=5)
        fields = {'train.length': NEAR, 'train.batch': 2, 'train.steps': options.tune_steps}
        fields |= {'init.source': first, 'init.extend': near, 'seed': seed}
        made = Run(workdir / f'tuned_{seed}', 'configs/extend.py', SAME_MACHINE | fields)
        tuned = train_runs({seed: made})[seed]
        far = found(tuned, FAR, file(FAR), documents=3)
        short = found(f'{tuned} | {far}', LENGTH, file(LENGTH), documents=20)
        compared += [first, f'{first} | {near}', tuned, f'{tuned} | {far}', f'{tuned} | {short}']
    evaluate_once(compared, workdir / 'comparison', settings(LENGTH, NEAR, FAR, tokens=16384))


PROGRAM = Program(__name__, __doc__, run, options=STEPS)
