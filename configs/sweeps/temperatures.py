"""A model without positions at four times its trained length, with trained temperatures of heads.

Command:   python -m configs.sweeps.temperatures [--seeds 0 1 2] [--steps 800] [--tuned 100]
           [--workdir runs/temperatures]
Measured:  nats a byte of a model without positions (that of the quickstart, 800 batches of 8
           windows of 128 bytes of English text) in windows of 128 to 1024; of the same model with
           one temperature for all heads; and of the model with a temperature for each head, trained
           in windows of 512 while all else is frozen
Number:    docs/claims.md, claim B21
Results:   WORKDIR/comparison. Runs whose last step is saved are not trained again, so the sweep may
           be interrupted and started again.
Paper:     Wang et al. (arXiv 2404.12224): temperatures of heads that are trained at the new length
           expand the context of models without positions substantially.
"""

import pathlib

from configs.sweeps.runs import Run, evaluate_once, train_runs
from posenc_jax.core.command import Parser

ONE = 'nope_temperature(temperature=1.2)'
FIELDS = {
    'encoding': 'nope()', 'train.length': 128, 'train.batch': 8, 'train.lr': 2e-3,
    'train.warmup': 80, 'train.eval_every': 400, 'train.save_every': 100000,
    'mesh.cpu_devices': 1,
}  # fmt: skip
EVALUATION = ('eval.lengths=128,512,1024', 'eval.protocols=same_tokens', 'eval.tokens=16384')


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--steps', type=int, default=800)
    parser.add_argument('--tuned', type=int, default=100)
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/temperatures')
    given, runs = parser.parse_args(arguments), {}
    for seed in given.seeds:
        base = given.workdir / f'nope_{seed}'
        fields = {**FIELDS, 'seed': seed, 'train.steps': given.steps}
        runs['nope', seed] = Run(base, 'configs/quickstart.py', fields)
        tuned = {
            'init.source': str(base), 'init.extend': 'nope_temperature(1.2, per_head=True)',
            'train.steps': given.tuned, 'train.warmup': given.tuned // 10, 'seed': seed,
            'train.save_every': 100000, 'mesh.cpu_devices': 1,
        }  # fmt: skip
        runs['tuned', seed] = Run(given.workdir / f'tuned_{seed}', 'configs/temperature.py', tuned)
    evaluated = []
    for (name, _), run in train_runs(runs).items():
        evaluated += [run, f'{run} | {ONE}'] if name == 'nope' else [run]
    evaluate_once(evaluated, given.workdir / 'comparison', EVALUATION)


if __name__ == '__main__':
    main()
