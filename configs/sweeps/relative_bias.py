"""Every encoding that acts on the logits on one text, trained at 256 tokens and evaluated to 4096.

nope, rope and sinusoidal are included for comparison.

Command:   python -m configs.sweeps.relative_bias [--seeds 0 1] [--workdir runs/relative_bias]
           [--only alibi rope]
Time:      15 to 60 s a run (two CPU cores)
Number:    perplexity per byte at 256 / 4096, two seeds: alibi 21.4 / 21.2, kerple 21.2 / 20.6, nope
           23.2 / 22.5, rope 23.5 / 28.4; the others are in docs/results/relative_bias.md. The
           corpus had one more file then, as that page says, so the command gives other numbers.
The sweep evaluates all runs and writes WORKDIR/comparison (table, results.json, results.csv,
pictures). Runs whose last step is saved are not trained again, so the sweep may be interrupted and
started again.
"""

from configs.sweeps.runs import Sweep

ENCODINGS = {
    'nope': 'nope()',
    'sinusoidal': 'sinusoidal()',
    'rope': 'rope()',
    'alibi': 'alibi()',
    'alibi_learned': 'alibi(learn_slopes=True)',
    't5_rpe': 't5_rpe()',
    'shaw': 'shaw()',
    'transformer_xl': 'transformer_xl()',
    'rcmha': 'rcmha()',
    'kerple_log': 'kerple()',
    'kerple_power': 'kerple(kernel="power")',
    'kerple_log3': 'kerple(kernel="log3")',
    'kerple_weight': 'kerple(kernel="bias_wht")',
    'fire': 'fire(threshold=256.0)',
    'sandwich': 'sandwich()',
    'cable': 'cable()',
    'bam': 'bam()',
    'bam_ssmax': 'bam() | ssmax()',
    'rpe_type1': 'rpe_convergent(kernel="type1")',
    'rpe_type2': 'rpe_convergent(kernel="type2")',
    'rpe_harmonic': 'rpe_convergent(kernel="harmonic")',  # its sum diverges
    'urpe': 'urpe()',
    'rope_alibi_harmonic': 'rope_alibi_harmonic()',
    'tra': 'tra()',
    'kernelized_rpe': 'kernelized_rpe()',
}
EXTENDED = [
    ('nope', 'nope_temperature(temperature=1.2)'),
    ('nope', 'nope_temperature(temperature=1.5)'),
    ('alibi', 'alibi_pi(factor=4.0)'),
    ('alibi', 'alibi_pi(mode="per_row")'),
]
SETTINGS = (
    'data.dataset=stdlib_code', 'train.length=256', 'train.batch=8', 'train.steps=300',
    'train.save_every=300',
    'train.eval_every=300', 'model.layers=2', 'model.width=128', 'model.heads=4',
)  # fmt: skip
EVALUATION = (
    'eval.lengths=256,1024,4096',
    'eval.protocols=nonoverlapping,same_tokens',
    'eval.tokens=8192',
)

SWEEP = Sweep(
    __doc__,
    ENCODINGS,
    EXTENDED,
    workdir='runs/relative_bias',
    settings=SETTINGS,
    evaluation={'comparison': EVALUATION},
)

if __name__ == '__main__':
    SWEEP.main()
