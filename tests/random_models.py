"""Random models whose states tell the position of a token or do not: six layers of width 64 with
token vectors of standard deviation 0.02, on independent tokens; shared by the tests of analyses.
"""

import functools

import numpy as np
from flax import nnx

from posenc_jax.lab.analyse.states import layer_states
from posenc_jax.lab.model import Transformer, TransformerConfig

VOCABULARY, LENGTH, WIDTH = 64, 64, 64
TOKENS = np.random.default_rng(0).integers(VOCABULARY, size=(32, LENGTH)).astype(np.int32)


@functools.cache
def random_model(kind='decoder', **fields):
    """A model without positions, 'decoder' or 'encoder'."""
    sizes = dict(vocab_size=VOCABULARY, train_len=LENGTH, layers=6, width=WIDTH, heads=4)
    sizes |= dict(embedding_scale=0.02 * WIDTH**0.5, encoding='nope()', tie=True) | fields
    return Transformer(TransformerConfig(kind=kind, **sizes), rngs=nnx.Rngs(0))


@functools.cache
def random_states(kind):
    """'hidden', 'attention' and 'mlp' of `layer_states` for TOKENS."""
    return layer_states(random_model(kind), TOKENS, ('hidden', 'attention', 'mlp'), batch=32)
