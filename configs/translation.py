"""Trains an encoder-decoder on synthetic translation of 1 to 8 words and evaluates up to 32 words.

Words decide where the translations of others stand: modifiers follow their word, and verbs move to
the end of their phrase. `python -m posenc_jax.lab.cli.generate --run=RUN --prompt='v1 m2 n4'`
translates.

Command:  python train.py --config=configs/translation.py [--config.cross='rope()']
Time:     1 minute of CPU time, evaluation included (11 minutes on two cores that other jobs
          shared).
Number:   rope() on both sides, cross='nope()': exact match at 8, 16, 32 words: 0.86, 0.00, 0.00
          (256 sentences each, seed 0); the 95 % interval of the first is 0.81-0.90. On sentences
          of 1 to 8 words, as in training, exact match is 0.95.
Paper:    the task is ours. Methods for it: xlpe (arXiv 2004.13310) and dpe (arXiv 2204.08142),
          whose papers report BLEU on natural languages.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.task = 'translation(words=16)'
    config.model.update(kind='encoder_decoder', layers=2, width=64, heads=4)
    config.train.update(steps=1000, batch=64, length=8, min_length=1, lr=3e-3, warmup=50)
    config.train.update(log_every=50, save_every=500, eval_every=500)
    config.eval.update(lengths=(8, 16, 32))
    return config
