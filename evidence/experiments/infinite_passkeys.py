"""Passkeys beyond the trained length with LM-Infinite and its few best keys, decoded.

Command:   python -m evidence.experiments.infinite_passkeys [--seeds 0 1 2]
           [--workdir runs/infinite_passkeys]
Time:      about 2 minutes a seed on one core
Number:    docs/claims.md, claim R30
RoPE is trained on keys of 3 digits in 16 to 64 tokens. LM-Infinite is applied without training, as
it is and with the five best keys between the first tokens and the window (`top_k`), the setting of
the paper. Only the last query of a text sees these keys, so answers are decoded token by token. The
keys lie behind the ten first tokens and before the window.
Results:   WORKDIR/decoded. Runs whose last step is saved are not trained again.
Paper:     Han et al. (arXiv 2308.16137)
"""

from evidence.experiments.runs import Sweep

SWEEP = Sweep(
    __doc__,
    {'rope': 'rope()'},
    [('rope', 'lm_infinite()'), ('rope', 'lm_infinite(top_k=5)')],
    workdir='runs/infinite_passkeys',
    config='configs/default.py',
    settings=(
        'task=passkey(lm_weight=0.1)', 'model.layers=2', 'model.width=64', 'model.heads=4',
        'train.length=64', 'train.min_length=16', 'train.batch=32', 'train.steps=1500',
        'train.lr=1e-3', 'train.eval_every=500', 'train.save_every=100000',
    ),
    evaluation={
        'decoded': (
            'eval.lengths=256,1024', 'eval.depths=0.25,0.5,0.75', 'eval.samples=32',
            'eval.decode=True',
        )
    },
)  # fmt: skip

if __name__ == '__main__':
    SWEEP.main()
