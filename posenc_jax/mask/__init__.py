"""Encodings that decide which keys a query sees: they open the door `mask`."""

from posenc_jax.mask import nar, prefix, window

__all__ = ['nar', 'prefix', 'window']
__dir__ = __all__.copy
