"""No positions against four encodings on five tasks of `impact_pe`, beyond the trained length.

Command:   python -m configs.sweeps.impact TASK [--seeds 0 1 2] [--workdir DIR] [--only nope rope]
           TASK is copy, reverse, sort, sum or parity
Lengths:   copies and reversals are trained on 2 to 10 of 10 symbols and evaluated at 10 to 20; the
           other tasks on 2 to 8 items and evaluated at 8 to 16. Kazemnejad et al. (arXiv
           2305.19466) train on up to 20 of 100 symbols and on up to 8 items, in models of 107
           million parameters for 40,000 steps.
Paper:     NoPE is about as good as T5's bias, better than ALiBi, and far better than RoPE and
           sinusoids; exact match of copies at 25 symbols: .70 / .73 / .73 / .00 / .00.
Number:    not measured yet. On copies of 1 to 10 symbols in another layout (task `copy`, these
           settings, one seed) exact match at 12 and 15 was ALiBi 1.00 and .84, NoPE .03 and .00,
           RoPE, T5's bias and sinusoids .00.
Time:      not measured; a step of `copy` reads 1,472 tokens, which took 0.14 s on a core that other
           programs shared. 25 runs for one seed.
Results:   WORKDIR/comparison. Exact match is that of the whole answer and its end. Runs whose last
           step is saved are not trained again, so the sweep may be interrupted and started again.
"""

from configs.sweeps.runs import Sweep, main

ENCODINGS = {
    'nope': 'nope()',
    't5': 't5_rpe()',
    'alibi': 'alibi()',
    'rope': 'rope()',
    'sinusoidal': 'sinusoidal()',
}
TASKS = {
    'copy': 'impact_pe("copy", symbols=10)',
    'reverse': 'impact_pe("reverse", symbols=10)',
    'sort': 'impact_pe("sort_single", symbols=10)',
    'sum': 'impact_pe("sum")',
    'parity': 'impact_pe("parity")',
}
STRINGS = ('copy', 'reverse')
SETTINGS = (
    'train.min_length=2', 'train.batch=64', 'train.steps=2500', 'train.lr=3e-3',
    'train.save_every=2500', 'train.eval_every=500', 'model.layers=2', 'model.width=64',
    'model.heads=4',
)  # fmt: skip
# The trained length, and those of the evaluation.
LENGTHS = {
    name: (10, '10,11,12,15,20') if name in STRINGS else (8, '8,9,10,12,16') for name in TASKS
}
SWEEPS = {
    name: Sweep(
        __doc__,
        ENCODINGS,
        workdir=f'runs/impact/{name}',
        settings=(*SETTINGS, f'task={task}', f'train.length={LENGTHS[name][0]}'),
        evaluation={'comparison': (f'eval.lengths={LENGTHS[name][1]}', 'eval.samples=256')},
    )
    for name, task in TASKS.items()
}

if __name__ == '__main__':
    main(SWEEPS)
