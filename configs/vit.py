"""Trains a vision transformer on the quarter in which a blob lies, and reads larger images.

Command:  python train.py --config=configs/vit.py [--config.encoding='peg()']
Time:     not measured yet
Number:   not measured yet
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.task = 'quadrant()'
    config.encoding = 'nope()'
    config.model.update(kind='encoder', layers=4, width=64, heads=4, patch=2, pool='mean')
    config.train.update(steps=300, batch=64, length=16, lr=2e-3, warmup=50)
    config.train.update(log_every=50, save_every=300, eval_every=150)
    config.eval.update(lengths=(16, 24, 32), samples=256)
    return config
