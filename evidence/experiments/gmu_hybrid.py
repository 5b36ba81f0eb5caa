"""Decoder-hybrid-decoder against plain decoders: recall of key-value pairs far beyond training.

Command:   python -m evidence.experiments.gmu_hybrid [--seeds 0 1 2] [--workdir runs/gmu_hybrid]
           [--only hybrid rope nope]
Measured:  exact match of the values of 8 keys (`mqar`, all 8 right). Models of 4 layers and width
           64 are trained on 64 tokens and evaluated at up to 16,384 tokens.
           `benchmarks/hybrid_decode.py` measures the bytes of the cache and the time of decoding at
           that length.
Number:    docs/results/models.md
Sizes:     the hybrid has fewer weights than the plain decoders, since its upper layers have no
           projections of keys and values.
Results:   WORKDIR/comparison. Runs whose last step is saved are not trained again, so the sweep may
           be interrupted and started again.
Paper:     Ren et al. (arXiv 2507.06607): good recall in phone books without positions, and up to
           ten times the decoding throughput for 32k new tokens behind a prompt of 2k.
"""

from evidence.experiments.runs import Sweep
from posenc_jax.mixers.gmu_hybrid import pattern_of

LAYERS = 4
MODELS = {
    'hybrid': {
        'encoding': 'nope()',
        'pattern': pattern_of(LAYERS, scan='cheems(rotate=False, chunk=64)'),
    },
    'rope': {'encoding': 'rope()'},
    'nope': {'encoding': 'nope()'},
}
SETTINGS = (
    'task=mqar(pairs=8, vocab=128)', 'train.length=64', 'train.min_length=64', 'train.batch=64',
    'train.steps=1000', 'train.lr=3e-3', 'train.warmup=50', 'train.save_every=100000',
    'train.eval_every=500', f'model.layers={LAYERS}', 'model.width=64', 'model.heads=4',
    'model.mlp_width=128',
)  # fmt: skip
EVALUATION = {
    'comparison': ('eval.lengths=64,256,1024,4096', 'eval.samples=60', 'eval.batch=10'),
    'far': ('eval.lengths=16384', 'eval.samples=10', 'eval.batch=1'),
}

SWEEP = Sweep(__doc__, MODELS, workdir='runs/gmu_hybrid', settings=SETTINGS, evaluation=EVALUATION)

if __name__ == '__main__':
    SWEEP.main()
