"""Bilevel positions (BiPE) against their base encodings on text.

A segment ends at a line break or a full stop.

Command:   python -m configs.sweeps.bilevel [--seeds 0 1] [--workdir runs/bilevel]
           [--only bipe_rope rope]
Time:      32 minutes for two seeds on two CPU cores with other jobs running, of which the
           evaluation takes 8
Number:    perplexity of the same bytes at 256 / 512 / 1024, two seeds: rope 3.5 / 6.4 / 16.2,
           bipe_rope 5.7 / 6.3 / 10.4, alibi 3.5 / 3.5 / 3.5, bipe_alibi 4.8 / 4.8 / 4.8
The models are trained on 256 bytes and evaluated to 1024. The expectation is that BiPE is as good
as its base at 256 and better beyond; the paper gains about 3 points of perplexity over ALiBi at
8192. Results: WORKDIR/comparison. Runs whose last step is saved are not trained again, so the sweep
may be interrupted and started again.
"""

from configs.sweeps.runs import Sweep
from posenc_jax.positions.bipe import bipe_slopes

SEPARATORS = 'bipe(separators=(10, 46))'
ENCODINGS = {
    'rope': 'rope()',
    'bipe_rope': f'{SEPARATORS} | rope()',
    'alibi': 'alibi()',
    'bipe_alibi': f'{SEPARATORS} | alibi(slopes={tuple(bipe_slopes(5).tolist())})',
}
SETTINGS = (
    'train.length=256',
    'train.batch=8',
    'train.steps=600',
    'train.save_every=600',
    'train.eval_every=300',
)
EVALUATION = {'comparison': ('eval.lengths=256,512,1024',)}

SWEEP = Sweep(__doc__, ENCODINGS, workdir='runs/bilevel', settings=SETTINGS, evaluation=EVALUATION)

if __name__ == '__main__':
    SWEEP.main()
