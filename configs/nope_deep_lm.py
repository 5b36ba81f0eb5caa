r"""Trains a deep byte-level language model without positions.

Pre-norm layers with layer norms and GELU; the causal mask alone carries the order of the tokens.
`posenc_jax.lab.analyse.nope_deep_lm` measures in which layer a trained model knows it.

Command:  python train.py --config=configs/nope_deep_lm.py [--config.model.layers=6]
Baseline: --config.encoding='sinusoidal()', with the same number of layers.
Time:     not measured; 24 layers are for an accelerator. On a CPU
          `python -m evidence.experiments models depth` compares 2, 6 and 12 layers of width 32; a
          run takes 3 to 8 minutes of one core.
Number:   that sweep, seeds 0, 1, 2, perplexity a byte without positions and with sinusoids:
          7.94, 8.01, 7.68 and 4.19, 4.14, 4.22 in 2 layers; 3.93, 3.88, 3.95 and 3.63, 3.63, 3.71
          in 6; 3.65, 3.61, 3.59 and 3.53, 3.49, 3.55 in 12.
Paper:    arXiv 1905.04226 trains models of up to 96 layers on words, and finds a slightly lower
          perplexity without positions at the depths that it tries. Up to 12 layers this is
          contrary here: the distance shrinks with the depth and stays.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.encoding = 'nope()'
    config.model.update(
        layers=24, width=256, heads=8, mlp='gelu_erf', norm='layernorm', bias='all', dropout=0.1
    )
    config.train.update(steps=2000, batch=32, length=256, lr=1e-3, warmup=200)
    config.train.update(save_every=500, eval_every=200)
    config.eval.update(lengths=(256, 512))
    return config
