"""Training-free extensions on our models: perplexity to 32 times the trained length, and passkeys.

Command:   python -m evidence.experiments.training_free [--seeds 0 1] [--workdir runs/training_free]
           [--base runs/extension]
Time:      20 minutes a seed for the text, most of it gali, and 6 a seed for the passkeys (two CPU
           cores, other jobs running)
Number:    passkeys at 1024 tokens, two seeds, mean over depths: yarn 0.98, lm_infinite 0.40,
           self_extend 0.26, dca 0.26, none 0. No page has the perplexities;
           `evidence.experiments.text_extension` measures the claims on extensions.
Text:      perplexity of the same last bytes at lengths to 8192. The models are the base runs of
           `evidence.experiments.extension` (rope, 256 bytes of Python source), which are trained
           here if they are not in --base.
Passkeys:  rope on keys of 3 digits in 16 to 64 tokens, evaluated to 1024 by depth.
Nothing is trained after an extension. Results: WORKDIR/text, WORKDIR/passkey (table, results.json,
results.csv, pictures). Runs whose last step is saved are not trained again.
"""

import pathlib

from evidence.experiments.bam_passkey import FIELDS
from evidence.experiments.runs import Run, evaluate_runs, train_runs
from posenc_jax.lab.files.command import Parser

EXTENSIONS = (
    '', 'yarn(factor={factor}.0)', 'dca()', 'string()', 'gali()', 'self_extend(group={group})',
    'self_extend(group=None)',
    'lm_infinite()',
)  # fmt: skip
TEXT = (
    'eval.lengths=256,512,1024,2048,4096,8192',
    'eval.protocols=same_tokens',
    'eval.tokens=16384',
)
PASSKEY = (
    'eval.lengths=64,128,256,512,1024',
    'eval.depths=0,0.25,0.5,0.75,1',
    'eval.samples=64',
    'eval.batch=64',
)


def extended(run: str, factor: int) -> list[str]:
    """The run, and the run with every extension. The groups of Self-Extend are large enough for
    `factor` times the trained length.
    """
    filled = (spec.format(factor=factor, group=2 * factor) for spec in EXTENSIONS)
    return [f'{run} | {spec}' if spec else run for spec in filled]


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/training_free')
    parser.add_argument(
        '--base',
        type=pathlib.Path,
        default='runs/extension',
        help='where the text runs are or will be',
    )
    parser.add_argument('--steps', type=int, default=1000, help='of the text runs')
    parser.add_argument('--passkey_steps', type=int, default=1500)
    arguments = parser.parse_args()
    runs = {}
    for seed in arguments.seeds:
        fields = {
            'data.dataset': 'stdlib_code',
            'train.length': 256,
            'train.steps': arguments.steps,
            'seed': seed,
        }
        fields |= {'train.eval_every': 500, 'train.save_every': 500}
        runs['text', seed] = Run(arguments.base / f'base_{seed}', 'configs/quickstart.py', fields)
        fields = FIELDS | {
            'encoding': 'rope()',
            'seed': seed,
            'train.steps': arguments.passkey_steps,
        }
        runs['passkey', seed] = Run(
            arguments.workdir / f'passkey_{seed}', 'configs/default.py', fields
        )
    runs = train_runs(runs)
    for kind, factor, settings in (('text', 32, TEXT), ('passkey', 16, PASSKEY)):
        evaluated = [run for seed in arguments.seeds for run in extended(runs[kind, seed], factor)]
        evaluate_runs(evaluated, arguments.workdir / kind, settings)


if __name__ == '__main__':
    main()
