"""The transformer that encodings plug into, its layout on a mesh, and generation with a cache."""

from posenc_jax.model.config import TransformerConfig
from posenc_jax.model.transformer import Transformer
