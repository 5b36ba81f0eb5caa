"""A model that is small enough for examples."""

from typing import Any

from flax import nnx

from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.transformer import Transformer


def tiny_model(encoding: str, **fields: Any) -> Transformer:
    """A random model of one layer, width 8, two heads and seven tokens, trained length 8.

    Args:
      encoding: spec string.
      fields: fields of `TransformerConfig` that are to be others.
    """
    sizes = dict(vocab_size=7, train_len=8, layers=1, width=8, heads=2)
    cfg = TransformerConfig(encoding=encoding, **{**sizes, **fields})
    return Transformer(cfg, rngs=nnx.Rngs(0))
