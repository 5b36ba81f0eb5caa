"""Trains an encoder to tell hidden bytes of English text from both sides, as BERT does.

15 % of the bytes of a window are chosen, most of them are replaced by a mask, and the loss is on
the chosen ones. The encoder is evaluated at 1, 2 and 4 times its trained length. `python -m
posenc_jax.lab.cli.generate --run=RUN --prompt='The [MASK]ollowing'` fills masks.

Command:  python train.py --config=configs/masked_text.py [--config.encoding='alibi_symmetric()']
Time:     1 minute of CPU time, evaluation included (10 minutes on two cores that other jobs
          shared).
Number:   rope(): token accuracy of the chosen bytes at 64, 128, 256: 0.54, 0.55, 0.49, with 95 %
          intervals of 0.02, 0.02 and 0.01 either way (256 windows each, seed 0). Exact match, all
          chosen bytes of a window right, is 0.
Paper:    Devlin et al. (arXiv 1810.04805) report perplexities of masked word pieces on far larger
          text; there is no number for bytes.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.task = 'masked_text()'
    config.model.update(kind='encoder', layers=3, width=96, heads=4)
    config.train.update(steps=600, batch=16, length=64, min_length=64, lr=3e-3, warmup=50)
    config.train.update(log_every=50, save_every=300, eval_every=300)
    config.eval.update(lengths=(64, 128, 256))
    return config
