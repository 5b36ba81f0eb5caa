"""Trains a language model whose layers are Cheems and attention with rotary positions in turn.

The model is evaluated at 1, 2 and 4 times its trained length.

Command:  python train.py --config=configs/hybrid.py [--config.pattern="('rope()','rope()')"]
Time:     70 seconds of CPU time, evaluation included (11 minutes on two cores that other jobs
          shared).
Number:   test perplexity, nonoverlapping, at 128, 256, 512 bytes (seed 0): 5.05, 5.04, 5.15; the
          test text is short, so the 95 % intervals are 0.4 to 0.6 either way.
          rope() in every layer: 5.44, 5.70, 8.82 (8.00-9.73).
Paper:    Shi et al. (arXiv 2407.16958) make every eighth layer attention; they find rotary
          positions the best ones within state-space layers, and hybrids better than either part.
          Their models are far larger, so their perplexities do not compare.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.pattern = ('cheems(chunk=16)', 'rope()')
    config.model.update(layers=4, width=96, heads=4)
    config.train.update(steps=300, batch=8, length=128, lr=3e-3, warmup=50)
    config.train.update(log_every=50, save_every=150, eval_every=150)
    config.eval.update(lengths=(128, 256, 512), tokens=16384)
    return config
