"""The progressive extension of LongRoPE, from 256 bytes of code over 1024 to 4096.

Command:   python -m evidence.experiments.progressive [--seeds 0 1 2] [--workdir runs/progressive]
Time:      about 25 minutes on one idle core for each seed, 15 of them for the base run
Number:    docs/results/pretrained_extension.md, "Progressive extension"
Measured:  the base of `evidence.experiments.text_extension`, trained in windows of 256 bytes;
           factors are searched for 1024 bytes, and the model is tuned with them for 100 steps of 2
           x 1024; factors are searched for 4096 bytes, without tuning; the list `short` is searched
           for 256 bytes. All models are scored on the same bytes, which lie all over the test text.
Results:   WORKDIR/comparison. Runs and searches that are complete are not done again, so the sweep
           may be interrupted and started again.
Paper:     Ding et al. (arXiv 2402.13753), section 4.2 and figure 4: 4k -> 256k, tuned -> 2048k.
"""

import json
import pathlib

from evidence.experiments.runs import Run, call, evaluate_once, train_runs
from evidence.experiments.text_extension import BUDGET, LENGTH, SAME_MACHINE, base, settings
from posenc_jax.lab.files.command import Parser

NEAR, FAR = 4 * LENGTH, 16 * LENGTH


def found(run: str, length: int, out: pathlib.Path, documents: int) -> str:
    """The spec with the factors that a search finds."""
    where = (f'--run={run}', f'--length={length}', f'--documents={documents}', f'--out={out}')
    call('-m', 'posenc_jax.lab.search', *where, *BUDGET)
    return json.loads(out.read_text())['spec']


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/progressive')
    parser.add_argument('--steps', type=int, default=4000, help='of the base runs')
    parser.add_argument('--tune_steps', type=int, default=100, help='of the other runs')
    arguments = parser.parse_args()
    workdir, compared = arguments.workdir, []
    for seed in arguments.seeds:
        file = lambda length: workdir / f'factors_{length}_{seed}.json'
        first = train_runs({seed: base(workdir, seed, arguments.steps)})[seed]
        near = found(first, NEAR, file(NEAR), documents=5)
        fields = {'train.length': NEAR, 'train.batch': 2, 'train.steps': arguments.tune_steps}
        fields |= {'init.source': first, 'init.extend': near, 'seed': seed}
        run = Run(workdir / f'tuned_{seed}', 'configs/extend.py', SAME_MACHINE | fields)
        tuned = train_runs({seed: run})[seed]
        far = found(tuned, FAR, file(FAR), documents=3)
        short = found(f'{tuned} | {far}', LENGTH, file(LENGTH), documents=20)
        compared += [first, f'{first} | {near}', tuned, f'{tuned} | {far}', f'{tuned} | {short}']
    evaluate_once(compared, workdir / 'comparison', settings(LENGTH, NEAR, FAR, tokens=16384))


if __name__ == '__main__':
    main()
