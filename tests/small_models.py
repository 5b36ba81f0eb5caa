"""Random models of a few thousand weights, for tests of the laboratory."""

import functools

from flax import nnx

from posenc_jax.lab.model import Transformer, TransformerConfig


def small_model(seed=0, **fields):
    """A model of its own, which a test may change; `fields` are those of `TransformerConfig`."""
    return Transformer(TransformerConfig(**fields), rngs=nnx.Rngs(seed))


kept_model = functools.cache(small_model)  # the same model for the same fields, never changed
