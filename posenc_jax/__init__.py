"""posenc_jax: positional encodings for JAX as values that plug into one streaming attention."""

from posenc_jax import (
    analysis,
    collect,
    conversion,
    coordinates,
    decoding,
    embedding,
    extension,
    fields,
    functional,
    graph,
    linen,
    logits,
    mask,
    mixers,
    positions,
    rotation,
    testing,
)
from posenc_jax.catalog import catalog, cite
from posenc_jax.core.attention import attend
from posenc_jax.core.compose import make
from posenc_jax.core.conflicts import chain
from posenc_jax.core.encoding import TOKEN_STAGE, Constant, Encoding
from posenc_jax.core.per_head import PerHead
from posenc_jax.core.registry import Card, Promises, SpecError, register
from posenc_jax.core.tokens import Tokens
from posenc_jax.model.attention import Attention, attention_layer
from posenc_jax.version import __version__
