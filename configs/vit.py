"""Trains a vision transformer to say in which direction the bright blob lies of the dark one, and
reads larger images.

Command:  python train.py --config=configs/vit.py [--config.task='digits()' or "folder('PATH')"]
Baseline: --config.encoding='nope()', which sees no order of the patches
Time:     about 40 s on two CPU cores, evaluation included
Number:   accuracy at 16, 24 and 32 pixels, seed 0: 0.996 (0.978-0.999), 0.965 (0.935-0.981) and
          0.914 (0.873-0.943); chance is 0.25.
Beside it, one seed: --config.task='quadrant()' --config.encoding='peg()' with 300 steps of 64
          images has 93 % at the trained 16 pixels, 62 % at 24 and 40 % at 32, where chance is 25 %;
          one convolution sees the border from one patch away, which is far from most of a larger
          scene.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.task = 'blobs()'
    config.encoding = 'peg(kernel=5, depth=1) | peg(kernel=5, depth=2) | peg(kernel=5, depth=3)'
    config.model.update(kind='encoder', layers=4, width=64, heads=4, patch=2, pool='mean')
    config.train.update(steps=150, batch=32, length=16, lr=2e-3, warmup=20)
    config.train.update(log_every=50, save_every=150, eval_every=150)
    config.eval.update(lengths=(16, 24, 32), samples=256)
    return config
