"""Python source at 16 times the trained length: RoPE as it is, and HiRoPE put on it.

Command:   python -m evidence.experiments.hirope_code [--seeds 0 1 2] [--workdir runs/hirope_code]
Measured:  nats a byte of the same 2048 bytes in windows of 256, 1024 and 4096, by the model of the
           quickstart that is trained with 600 batches of 8 windows of 256 bytes of Python source.
           `hirope(window=128)` counts bytes in a function and functions; with a window that is
           longer than the text, `hirope(window=65536)`, it is the RoPE of training.
Number:    docs/claims.md, claim A35
Results:   WORKDIR/comparison. Runs whose last step is saved are not trained again, so the sweep may
           be interrupted and started again.
Paper:     Zhang et al. (arXiv 2403.19115): models of code read exponentially longer files without
           training.
"""

import dataclasses
import pathlib

from evidence.experiments.runs import Sweep, evaluate_once, train_runs

HIROPE, ROPE = 'hirope(window=128)', 'hirope(window=65536)'


@dataclasses.dataclass(frozen=True)
class Extended(Sweep):
    """A sweep whose evaluations are of the extended models alone."""

    def main(self, arguments=None):
        options = self.parse(arguments)
        evaluations = self.evaluations(options)
        trained = train_runs(self.runs(options))
        evaluated = [f'{run} | {ext}' for run in trained.values() for _, ext in self.extended]
        for folder, fields in evaluations.items():
            evaluate_once(evaluated, pathlib.Path(options.workdir, folder), fields)
        return trained


SWEEP = Extended(
    __doc__,
    {'rope': 'rope()'},
    [('rope', HIROPE), ('rope', ROPE)],
    workdir='runs/hirope_code',
    settings=(
        'data.dataset=stdlib_code', 'train.length=256', 'train.batch=8', 'train.steps=600',
        'train.lr=2e-3', 'train.warmup=60', 'train.eval_every=300', 'train.save_every=100000',
    ),
    evaluation={
        'comparison': (
            'task=code_text()', 'eval.lengths=256,1024,4096', 'eval.protocols=same_tokens',
            'eval.tokens=65536', 'eval.stride=128',
        )
    },
)  # fmt: skip

if __name__ == '__main__':
    SWEEP.main()
