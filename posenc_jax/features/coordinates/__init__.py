"""Encoders of coordinates: features of points, for networks that read points and not tokens."""

from posenc_jax.features.coordinates import (
    barf,
    fourier_features,
    gaussians,
    geo,
    hash_grid,
    integrated_pe,
    learnable_fourier,
    mspe,
    recombiner_lpe,
    shifted_basis,
    triplane,
)
from posenc_jax.features.coordinates.encoder import CoordinateEncoder, JoinedFeatures, make_features

__all__ = [
    'CoordinateEncoder',
    'JoinedFeatures',
    'barf',
    'fourier_features',
    'gaussians',
    'geo',
    'hash_grid',
    'integrated_pe',
    'learnable_fourier',
    'make_features',
    'mspe',
    'recombiner_lpe',
    'shifted_basis',
    'triplane',
]
__dir__ = __all__.copy
