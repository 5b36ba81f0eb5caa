"""Passkeys far beyond the trained length: BAM, BAM with scalable softmax, ALiBi, RoPE and NoPE.

Command:   python -m evidence.experiments.bam_passkey [--seeds 0 1] [--workdir runs/bam_passkey]
Time:      8 minutes a seed on two CPU cores for 1500 steps and lengths to 1024; a single run takes
           under a minute. 3000 steps, and the evaluation at 4096, were not timed.
Number:    seeds 0 and 1, 1500 steps, exact match of 32 keys that lie first in 1024 tokens: bam .31,
           .19, bam_ssmax .25, .47, nope .34, .31, alibi .03, 0, rope 0; of keys that lie last: .59,
           .78; .97, .88; .50, .66; 1.0; 0. `evidence.experiments.text passkeys` has three seeds and
           more keys (docs/results/relative_bias.md).
The models are trained on keys of 3 digits in 16 to 64 tokens and evaluated at 64 to 4096, with the
key at five depths. Runs that are complete are not trained again. Results: WORKDIR/comparison
(table, results.json, results.csv, a heat map of length and depth for each encoding). The exponents
of BAM start spread over 0 .. 1; exponents that start at 1, the default, must first unlearn ALiBi.
Paper:     Bianchessi et al. (arXiv 2505.22842): bam | ssmax trained at 512 tokens retrieves at 500
           times that length.
"""

import pathlib

from evidence.experiments.runs import Run, evaluate_runs, train_runs
from posenc_jax.lab.files.command import Parser

PRIOR = 'bam(beta=(0.0, 0.3333, 0.6667, 1.0))'
ENCODINGS = {
    'bam': PRIOR,
    'bam_ssmax': f'{PRIOR} | ssmax()',
    'alibi': 'alibi()',
    'rope': 'rope()',
    'nope': 'nope()',
}
FIELDS = {
    'task': 'passkey(lm_weight=0.1)', 'model.layers': 2, 'model.width': 64, 'model.heads': 4,
    'train.length': 64,
    'train.min_length': 16, 'train.batch': 32, 'train.lr': 1e-3, 'train.save_every': 500,
    'train.eval_every': 500,
}  # fmt: skip
EVALUATION = (
    'eval.lengths=64,128,256,512,1024,2048,4096',
    'eval.depths=0,0.25,0.5,0.75,1',
    'eval.samples=64',
    'eval.batch=64',
)


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--workdir', default='runs/bam_passkey')
    parser.add_argument('--encodings', nargs='+', choices=tuple(ENCODINGS), default=list(ENCODINGS))
    parser.add_argument('--steps', type=int, default=3000)
    parser.add_argument(
        '--eval',
        nargs='*',
        default=[],
        metavar='FIELD=VALUE',
        help='of the evaluation, e.g. eval.samples=16',
    )
    arguments = parser.parse_args()
    workdir = pathlib.Path(arguments.workdir)
    runs = {
        (name, seed): Run(
            workdir / f'{name}_{seed}',
            'configs/default.py',
            FIELDS | {'encoding': ENCODINGS[name], 'seed': seed, 'train.steps': arguments.steps},
        )
        for seed in arguments.seeds
        for name in arguments.encodings
    }
    evaluate_runs(train_runs(runs).values(), workdir / 'comparison', (*EVALUATION, *arguments.eval))


if __name__ == '__main__':
    main()
