r"""Trains a deep byte-level language model without positions.

Pre-norm layers with layer norms and GELU; the causal mask alone carries the order of the tokens.
`posenc_jax.analysis.nope_deep_lm` measures in which layer a trained model knows it.

Command:  python train.py --config=configs/nope_deep_lm.py [--config.model.layers=6]
Baseline: --config.encoding='sinusoidal()', with the same number of layers.
Time:     not measured; 24 layers are for an accelerator. On a CPU compare 2 with 6 layers:
          --config.model.layers=2 --config.model.width=128 --config.train.steps=400
Paper:    arXiv 1905.04226 trains models of up to 96 layers on words, and finds a slightly lower
          perplexity without positions at the depths that it tries. Its sizes and training are
          others than these.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.encoding = 'nope()'
    config.model.update(
        layers=24, width=256, heads=8, mlp='gelu_erf', norm='layernorm', bias='all', dropout=0.1
    )
    config.train.update(steps=2000, batch=32, length=256, lr=1e-3, warmup=200)
    config.train.update(save_every=500, eval_every=200)
    config.eval.update(lengths=(256, 512))
    return config
