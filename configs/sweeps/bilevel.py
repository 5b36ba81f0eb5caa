"""Bilevel positions (BiPE) against their base encodings on text.

A segment ends at a line break or a full stop.

Command:   python -m configs.sweeps.bilevel [--seeds 0 1 2] [--workdir runs/bilevel]
           [--only bipe_rope rope]
Number:    docs/claims.md, claims A13 and A14
The models are trained in windows of 256 bytes, with as many bytes as those of
`configs.sweeps.text lengths`, and read to 1024. The expectation is that BiPE is as good as its base
at 256 and better beyond; the paper gains about 3 points of perplexity over ALiBi at 8192.
Results:   WORKDIR/comparison. Runs whose last step is saved are not trained again, so the sweep
           may be interrupted and started again.
"""

from configs.sweeps.runs import Sweep
from posenc_jax.positions.bipe import bipe_slopes

SEPARATORS = 'bipe(separators=(10, 46))'
ENCODINGS = {
    'rope': 'rope()',
    'bipe_rope': f'{SEPARATORS} | rope()',
    'alibi': 'alibi()',
    'bipe_alibi': f'{SEPARATORS} | alibi(slopes={tuple(bipe_slopes(3).tolist())})',
}
SETTINGS = (
    'model.width=96',
    'model.heads=3',
    'train.length=256',
    'train.batch=4',
    'train.steps=2000',
    'train.lr=4e-3',
    'train.warmup=80',
    'train.eval_every=400',
    'train.save_every=100000',
)
EVALUATION = {
    'comparison': (
        'eval.lengths=256,512,1024',
        'eval.protocols=same_tokens',
        'eval.tokens=131072',  # the whole test text
    )
}

SWEEP = Sweep(__doc__, ENCODINGS, workdir='runs/bilevel', settings=SETTINGS, evaluation=EVALUATION)

if __name__ == '__main__':
    SWEEP.main()
