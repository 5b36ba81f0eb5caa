"""The transformer that encodings plug into, its decode cache, and its layout on a mesh."""

from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.transformer import Transformer

__all__ = ['Transformer', 'TransformerConfig']
__dir__ = __all__.copy
