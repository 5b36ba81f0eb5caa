"""The first comparison: nine ways to encode positions on one corpus, perplexity by length.

Command:   python -m configs.sweeps.first_comparison [--seeds 0 1] [--workdir runs/first_comparison]
Time:      see docs/results/first_comparison.md (two CPU cores)
The sweep evaluates all runs with four protocols and writes WORKDIR/comparison (table, results.json,
results.csv, pictures). Runs whose last step is saved are not trained again, so the sweep may be
interrupted and started again.
"""

from configs.sweeps.runs import Sweep

ENCODINGS = {
    'nope': 'nope()',
    'sinusoidal': 'sinusoidal()',
    'learned_absolute': 'learned_absolute(max_len=128, overflow="clamp")',
    'rope': 'rope()',
    'alibi': 'alibi()',
    't5_rpe': 't5_rpe()',
    'kerple': 'kerple()',
    'fire': 'fire()',
}

SWEEP = Sweep(__doc__, ENCODINGS, [('rope', 'yarn(factor=8.0)')], workdir='runs/first_comparison')

if __name__ == '__main__':
    SWEEP.main()
