"""Longer sums than those of training: TAPE against RoPE on addition.

Command:   python -m evidence.experiments.tape_addition [--seeds 0 1 2]
           [--workdir runs/tape_addition] [--only tape rope]
Task:      operands of 1 to 8 digits, padded to equal length, with the sum in reverse; evaluated at
           8, 12 and 16 digits. Both sides read the same tokens and have the same sizes; `tape_mix`
           mixes the averages of all heads in place of one factor a head.
Time:      about 2 minutes for each run of rope and 3 of tape on one core of a busy machine
Number:    docs/results/models.md: all sums of 8 digits right (one seed of tape: .14), none of 12
           or 16. Zhu et al. (arXiv 2501.00712) train 12 layers on sums of up to 40 digits and
           report that TAPE is better than RoPE beyond them.
Results:   WORKDIR/comparison. Runs whose last step is saved are not trained again, so the sweep may
           be interrupted and started again.
"""

from evidence.experiments.runs import Sweep

ENCODINGS = {'rope': 'rope()', 'tape': 'tape()', 'tape_mix': 'tape(post_attn="mix")'}
SETTINGS = (
    'task=addition(reverse_output=True, zero_pad=True)',
    'train.length=8', 'train.min_length=1', 'train.batch=64', 'train.steps=3000', 'train.lr=1e-3',
    'train.save_every=1000', 'train.eval_every=1000',
    'model.layers=3', 'model.width=64', 'model.heads=4',
)  # fmt: skip
EVALUATION = {'comparison': ('eval.lengths=8,12,16', 'eval.samples=200')}

SWEEP = Sweep(
    __doc__, ENCODINGS, workdir='runs/tape_addition', settings=SETTINGS, evaluation=EVALUATION
)

if __name__ == '__main__':
    SWEEP.main()
