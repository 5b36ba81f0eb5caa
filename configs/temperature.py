r"""Tunes one temperature per layer and head of a run without positions, at four times its length.

All other weights are frozen.

Command:  python train.py --config=configs/quickstart.py --config.encoding='nope()'
          python train.py --config=configs/temperature.py \
              --config.init.source=runs/language-pydoc_topics-nope-s0 \
              [--config.init.extend='nope_temperature(1.3, per_head=True)'] \
              [--config.train.length=256] [--config.name=NAME]
Others:   without training:
          python eval.py --run='runs/language-pydoc_topics-nope-s0 | nope_temperature(1.5)'
Paper:    Wang et al., arXiv 2404.12224: 200 steps of batch 8 at the new length, lr 0.1 (or 0.05),
          warm-up of 10 %, cosine to 10 %, no weight decay. Training starts from the best single
          temperature for all heads: 1.6 for 4 times the trained length, 1.1B weights.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.init.extend = 'nope_temperature(1.6, per_head=True)'
    config.train.update(tune='encodings', steps=200, batch=8, length=512, eval_every=50)
    config.train.update(lr=0.1, warmup=20, end_lr_fraction=0.1, weight_decay=0.0)
    config.eval.update(lengths=(128, 256, 512, 1024))
    return config
