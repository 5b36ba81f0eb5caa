r"""Continues a training run on pieces of texts four times as long as its sequences.

The tokens of a piece keep the positions that they have in the text. The trained length stays that
of the run. The lengths are for the quickstart, which is trained at 128; for another source set
--config.train.length and source_len.

Command:  python train.py --config=configs/segmented.py \
          --config.init.source=runs/language-pydoc_topics-rope-s0 \
              [--config.task='segmented_text(source_len=512, prefix_len=64)'] [--config.name=NAME]
Others:   a run with a learned table needs more rows:
          --config.init.extend='segmented_sequences(factor=4)'. CREAM selects text and positions
          in its own way: --config.task='cream_text(factor=4, source_len=512)'
          --config.init.extend='pi(factor=4.0)'
Time:     not measured.
Papers:   segmented sequences (arXiv 2310.14633): 4 times the length with the memory of the old
          length, and lower perplexity at the new one; the paper does not say how many tokens are
          drawn from which part. CREAM (arXiv 2406.07138): f = 8, 1000 steps, batch 32, lr 2e-5.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.task = 'segmented_text(source_len=512, segment_len=16)'
    config.train.update(steps=200, batch=16, length=128, lr=5e-4, warmup=20, end_lr_fraction=1.0)
    config.train.update(save_every=100, eval_every=100)
    config.eval.update(lengths=(128, 256, 512))
    return config
