"""Continues a run of ours at 512 tokens with YaRN of factor 4 (for the quickstart, trained at 128):
all weights train on.

Command:  python train.py --config=configs/extend.py \
          --config.init.source=runs/language-pydoc_topics-rope-s0 \
              [--config.init.extend='pi(factor=4.0)'] [--config.name=NAME]
Others:   PI, ABF (`abf()`) and LongRoPE (`longrope(...)`, factors from `python -m
          posenc_jax.search`) in the same place. PSC trains calibrations and adapters, the
          rest frozen: --config.init.extend='psc() | pi(factor=4.0)' --config.model.lora_rank=8
          --config.train.tune=adapters --config.train.lr=2e-4. Another source wants its own
          --config.train.length and factor.
Time:     see docs/results/pretrained_extension.md.
Papers:   PI: 1000 steps; YaRN: 400; LongRoPE: 400 at half the target, then the factors of the
          target and 600 more (two runs, the second with the first as its source; the search goes on
          from a run's factors). All with AdamW (b2 0.95), lr 2e-5, 20 steps of warm-up, no weight
          decay, on models of billions of parameters; small models take and need a larger rate.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
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
