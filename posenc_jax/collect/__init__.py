"""Encodings that change how values are summed: they open the door `collect`."""

from posenc_jax.collect import urpe

__all__ = ['urpe']
__dir__ = __all__.copy
