"""A byte-level language model on English text that comes with Python, evaluated at 1, 2, 4 and 8 times its length.

Command:  python train.py --config=configs/quickstart.py [--config.encoding='alibi()']
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.model.update(layers=4, width=160, heads=5)
    config.train.update(steps=500, batch=16, length=128, lr=2e-3, warmup=50, save_every=100, eval_every=100)
    return config
