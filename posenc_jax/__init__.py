"""posenc_jax: positional encodings for JAX as values that plug into one streaming attention."""

from posenc_jax import (
    analysis,
    bias,
    cache,
    collect,
    embedding,
    extension,
    functional,
    mask,
    mixers,
    positions,
    rotation,
)
from posenc_jax.core.attention import attend
from posenc_jax.core.catalog import catalog, cite
from posenc_jax.core.compose import chain, make
from posenc_jax.core.encoding import Constant, Encoding, Tokens
from posenc_jax.core.per_head import PerHead
from posenc_jax.core.registry import Card, Promises, SpecError, register

__version__ = '0.2.0'
