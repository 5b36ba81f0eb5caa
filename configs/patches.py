"""Trains on questions about pictures of 3 to 6 rows and columns of coloured patches, and evaluates
on 6 x 6 and 8 x 8: the colour of the patch in a row and a column whose names training has.

Command:  python train.py --config=configs/patches.py
          Other frequencies and other positions:
          --config.encoding='mrope(frequencies="interleaved")', also "by_head",
          "low_frequency_time" and "no_time"; 'mrope(positions="spatial_reset")', also "diagonal"
          and "circle"; a circle in every second layer: --config.pattern='circlerope(),mrope()'
          The index of a token alone: --config.encoding='rope(base=1e6)'
          --config.task='patch_questions(asked=6)'
          When a patch changed, in videos of 4 to 8 frames, evaluated on 12:
          --config.task='patch_questions("time", asked=8, ids="layout")' --config.train.length=8
          --config.train.min_length=4 --config.eval.lengths=8,12
Number:   docs/claims.md, claims FM1 and FM3 to FM5: heads of 32 features, the base 100, and text in
          front of the questions (`python -m evidence.experiments patches`).
Paper:    arXiv 2409.12191 and 2510.23095 have no number for these tasks, which are ours.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.task = 'patch_questions(asked=6, ids="layout")'
    config.encoding = 'mrope()'
    config.model.update(layers=2, width=64, heads=4)
    config.train.update(steps=3000, batch=64, length=6, min_length=3, lr=1e-3, warmup=100)
    config.train.update(log_every=100, save_every=1000, eval_every=500)
    config.eval.update(lengths=(6, 8), samples=512)
    return config
