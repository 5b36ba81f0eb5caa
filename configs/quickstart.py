"""Trains a byte-level language model on English text that comes with Python.

The model is evaluated at 1, 2, 4 and 8 times its trained length.

Command:  python train.py --config=configs/quickstart.py [--config.encoding='alibi()']
Time:     1 min 35 s on two CPU cores, evaluation included (12,800 tokens/s).
Number:   rope(): validation loss 1.752 nats a byte at step 400; test perplexity, nonoverlapping, at
          128, 256, 512, 1024: 3.87, 4.17, 5.59, 9.07 (Python 3.11, seed 0). The test text has few
          documents: over them the 95 % interval of the first is 3.64-6.15. A table of 5-grams of
          the training text has 3.62 on the same bytes, so this model has not learned much yet.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.model.update(layers=4, width=160, heads=5)
    config.train.update(
        steps=400, batch=16, length=128, lr=2e-3, warmup=50, save_every=100, eval_every=100
    )
    return config
