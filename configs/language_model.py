r"""Trains a larger language model, for an accelerator, on the source code that comes with Python.

The model has 12 layers and reads packed documents.

Command:  python train.py --config=configs/language_model.py \
          [--config.data.dataset='text:books/*.txt']
Time:     not measured; too slow for a CPU.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.data.update(dataset='stdlib_code', packing='documents')
    config.model.update(
        layers=12, width=512, heads=8, mlp='swiglu', mlp_width=1408, dtype='bfloat16'
    )
    config.train.update(
        steps=5000, batch=64, length=512, lr=6e-4, warmup=300, save_every=500, eval_every=500
    )
    config.eval.update(stride=128)
    return config
