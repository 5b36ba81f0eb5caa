r"""Continues a training run at 512 tokens with YaRN of factor 4; all weights are trained.

The lengths are for the quickstart, which is trained at 128. For another source set
--config.train.length and the factor.

Command:  python train.py --config=configs/extend.py \
          --config.init.source=runs/language-pydoc_topics-rope-s0 \
              [--config.init.extend='pi(factor=4.0)'] [--config.name=NAME]
Others:   PI, ABF (`abf()`) and LongRoPE (`longrope(...)`, with factors from `python -m
          posenc_jax.lab.longrope_search`) are given in the same way. For PSC only its calibrations
          and adapters are trained: --config.init.extend='psc() | pi(factor=4.0)'
          --config.model.lora_rank=8 --config.train.tune=adapters --config.train.lr=2e-4.
Time:     100 steps of 4 x 1024 bytes with 4 layers of width 160: under a minute on two idle cores.
Papers:   PI trains for 1000 steps, YaRN for 400. LongRoPE trains for 400 steps at half the target,
          and then for 600 more with the factors of the target; here these are two runs, the second
          with the first as its source, and the search continues from the factors of a run. All
          papers use AdamW (b2 0.95), lr 2e-5, 20 steps of warm-up and no weight decay, on models of
          billions of parameters. Small models need a larger rate.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.init.extend = 'yarn(factor=4.0)'
    config.train.update(
        steps=100,
        batch=4,
        length=512,
        lr=5e-4,
        warmup=20,
        b2=0.95,
        weight_decay=0.0,
        end_lr_fraction=1.0,
    )
    config.train.update(save_every=50, eval_every=50)
    config.eval.update(lengths=(128, 256, 512, 1024, 2048))
    return config
