"""Counting, copying and tracking states: encodings that read the content, against others.

Command:   python -m evidence.experiments.synthetic GROUP [--seeds 0 1 2] [--workdir DIR]
           [--only NAME]
           GROUP is one of
  counting        how often a variable was incremented since it was set, with `cope` and others
  selective_copy  the symbols of a text without its blanks, with fewer and more blanks than trained
  parity          the parity of all bits so far, with `path` and others, to four times the length
  a5              products of even permutations of five points, in the same way
Number:    docs/claims.md, claims C2a, C2b, C4b and C4c
Results:   WORKDIR/comparison and, for selective_copy, WORKDIR/dense and WORKDIR/sparse. Runs whose
           last step is saved are not trained again, so the sweep may be interrupted and started
           again.
Paper:     Golovneva et al. (arXiv 2405.18719): CoPE counts and copies where other encodings fail.
           Yang et al. (arXiv 2505.16381): PaTH tracks states that RoPE does not.
"""

from evidence.experiments.runs import Sweep, main

CONTENT = {'cope': 'cope(npos=64)', 'rope': 'rope()', 'alibi': 'alibi()', 'nope': 'nope()'}
STATES = {'path': 'path()', 'rope': 'rope()', 'nope': 'nope()'}
ENCODINGS = {'counting': CONTENT, 'selective_copy': CONTENT, 'parity': STATES, 'a5': STATES}
SIZES = (
    'model.layers=2', 'model.width=64', 'model.heads=4', 'train.batch=64', 'train.lr=1e-3',
    'train.save_every=100000', 'train.eval_every=500',
)  # fmt: skip
SETTINGS = {
    'counting': ('task=counting()', 'train.length=32', 'train.min_length=8', 'train.steps=1500'),
    'selective_copy': (
        'task=selective_copy()', 'train.length=16', 'train.min_length=4', 'train.steps=2000',
    ),
    'parity': (
        'task=word_problem("parity")', 'train.length=16', 'train.min_length=1', 'train.steps=1500',
    ),
    'a5': (
        'task=word_problem("a5")', 'train.length=8', 'train.min_length=1', 'train.steps=2000',
    ),
}  # fmt: skip
SAMPLES = 'eval.samples=500'
EVALUATION = {
    'counting': {'comparison': ('eval.lengths=32,64,128', SAMPLES)},
    'selective_copy': {
        'comparison': ('eval.lengths=16,32', SAMPLES),
        'dense': ('task=selective_copy(blanks=0.5)', 'eval.lengths=16', SAMPLES),
        'sparse': ('task=selective_copy(blanks=2.0)', 'eval.lengths=16', SAMPLES),
    },
    'parity': {'comparison': ('eval.lengths=16,32,64', SAMPLES)},
    'a5': {'comparison': ('eval.lengths=8,16,32', SAMPLES)},
}
SWEEPS = {
    group: Sweep(
        __doc__,
        encodings,
        workdir=f'runs/synthetic/{group}',
        config='configs/default.py',
        settings=(*SIZES, *SETTINGS[group]),
        evaluation=EVALUATION[group],
    )
    for group, encodings in ENCODINGS.items()
}

if __name__ == '__main__':
    main(SWEEPS)
