"""Encodings that rotate queries and keys: they open the door `project`, and some also `match`."""

from posenc_jax.rotation import (
    axial_rope2d,
    carope,
    conflator,
    frequencies,
    md_lrpe,
    psc,
    rope,
    tapa,
    tape,
    xpos,
)

__all__ = [
    'axial_rope2d',
    'carope',
    'conflator',
    'frequencies',
    'md_lrpe',
    'psc',
    'rope',
    'tapa',
    'tape',
    'xpos',
]
__dir__ = __all__.copy
