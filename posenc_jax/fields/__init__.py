"""Fields: networks from coordinates, or from features of them, to values."""

from posenc_jax.fields import (
    bit_plane_inr,
    doh,
    fcnet,
    finer,
    gauss,
    linear,
    mlp,
    pins,
    poly_inr,
    siren,
    spder,
    wire,
)
from posenc_jax.fields.network import FieldNetwork, make_field

__all__ = [
    'FieldNetwork',
    'bit_plane_inr',
    'doh',
    'fcnet',
    'finer',
    'gauss',
    'linear',
    'make_field',
    'mlp',
    'pins',
    'poly_inr',
    'siren',
    'spder',
    'wire',
]
__dir__ = __all__.copy
