r"""Trains a language model in which three of four layers are local and rotary, and one is global
and has no positions, as in Llama 4.

The model is evaluated at 1, 2, 4 and 8 times its trained length.

Command:  python train.py --config=configs/irope.py
Others:   orders of other models, by the specs that this prints:
          python -c "from posenc_jax.functional import irope_pattern as p; print(p('swan', 32))"
          The pattern of SWAN has no factor of its own; for longer texts a fitted one is added:
          python eval.py --run='runs/swan | nope_temperature(slope=0.3)'
Baseline: --config.pattern="('rope()',)" --config.name=rope
Time:     not measured.
Papers:   the code of Llama 4, with chunks of 8192; SWAN-GPT (arXiv 2504.08719) has the global layer
          first and windows of 512 tokens, RNoPE-SWA (arXiv 2501.18795) has it last.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults
from posenc_jax.methods.irope import irope_pattern


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.name = 'irope'
    config.pattern = irope_pattern('llama4', size=32)
    config.model.update(layers=4, width=96, heads=4)
    config.train.update(steps=300, batch=8, length=128, lr=3e-3, warmup=50)
    config.train.update(log_every=50, save_every=150, eval_every=150)
    config.eval.update(lengths=(128, 256, 512, 1024), tokens=16384)
    return config
