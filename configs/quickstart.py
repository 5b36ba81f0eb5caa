"""A byte-level language model on English text that comes with Python, evaluated at 1, 2, 4 and 8 times its length.

Command:  python train.py --config=configs/quickstart.py [--config.encoding='alibi()']
Time:     about 6 CPU-minutes of training (measured on a shared machine), then the evaluation; two cores share them.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.model.update(layers=4, width=160, heads=5)
    config.train.update(steps=400, batch=16, length=128, lr=2e-3, warmup=50, save_every=100, eval_every=100)
    return config
