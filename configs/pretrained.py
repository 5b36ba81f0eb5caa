r"""Continues a public checkpoint at a longer length with YaRN; only adapters of rank 8 are trained.

Command:  python train.py --config=configs/pretrained.py --config.init.source=DIRECTORY_OR_GGUF \
              [--config.data.dataset='text:books/*.txt'] [--config.init.extend='pi(factor=2.0)'] \
              [--config.train.length=16384]
Others:   without training: python eval.py --run='DIRECTORY_OR_GGUF | yarn(factor=2.0)'
          --config.data.dataset='text:books/*.txt'
          with all weights trained, as in the papers: --config.model.lora_rank=0
          --config.train.tune=all --config.train.lr=2e-5
Time:     12 s a step of 4,096 tokens for SmolLM2-135M on two CPU cores; meant for an accelerator.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.init.extend, config.data.dataset = 'yarn(factor=2.0)', 'stdlib_code'
    config.model.update(lora_rank=8, lora_alpha=16.0, dtype='bfloat16', remat='full')
    config.train.update(
        tune='adapters',
        steps=400,
        batch=8,
        length=16384,
        lr=2e-4,
        warmup=20,
        b2=0.95,
        weight_decay=0.0,
    )
    config.train.update(eval_batches=1, save_every=100, eval_every=100)
    config.eval.update(
        lengths=(4096, 8192, 16384), batch=1, stride=256, protocols=('same_tokens', 'per_position')
    )
    return config
