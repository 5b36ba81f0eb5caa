"""Flip-flop language: TRA and other encodings on longer, sparser and denser sequences than trained.

Command:   python -m evidence.experiments.flip_flop [--seeds 0 1] [--workdir runs/flip_flop]
           [--only tra nope]
Time:      a minute a run (one CPU core)
Number:    64 pairs, three seeds: tra and path 1.00, alibi 0.73 to 0.90, cope 0.21 to 0.39, nope
           0.18 to 0.24, rope 0.15 to 0.19; docs/claims.md, claims B14, C1 and C4a
The models are trained on up to 16 pairs, of which 80 % are to be ignored. They are evaluated at 16
and 64 pairs, with 80 %, 98 % and 10 % to be ignored. Exact match is of all bits that are read in a
sequence. Results: WORKDIR/comparison, WORKDIR/sparse, WORKDIR/dense. Runs whose last step is saved
are not trained again, so the sweep may be interrupted and started again.
"""

from evidence.experiments.runs import Sweep

ENCODINGS = {
    'tra': 'tra()',
    'path': 'path()',
    'cope': 'cope(npos=32)',
    'cope_128': 'cope(npos=128)',  # a position for each token of 64 pairs
    'nope': 'nope()',
    'rope': 'rope()',
    'alibi': 'alibi()',
}
SETTINGS = (
    'task=flip_flop(ignore=0.8)', 'train.length=16', 'train.min_length=4', 'train.batch=64',
    'train.steps=1000', 'train.lr=1e-3',
    'train.save_every=1000', 'train.eval_every=500', 'model.layers=2', 'model.width=64',
    'model.heads=4',
)  # fmt: skip
EVALUATION = {
    'comparison': ('eval.lengths=16,64', 'eval.samples=500'),
    'sparse': ('task=flip_flop(ignore=0.98)', 'eval.lengths=16,64', 'eval.samples=500'),
    'dense': ('task=flip_flop(ignore=0.1)', 'eval.lengths=16,64', 'eval.samples=500'),
}

SWEEP = Sweep(
    __doc__, ENCODINGS, workdir='runs/flip_flop', settings=SETTINGS, evaluation=EVALUATION
)

if __name__ == '__main__':
    SWEEP.main()
