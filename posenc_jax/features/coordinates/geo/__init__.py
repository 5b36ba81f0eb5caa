"""Encoders of places on the globe: (longitude, latitude) in degrees."""

from posenc_jax.features.coordinates.geo import geo_sh, one_scale, space2vec, sphere2vec
from posenc_jax.features.coordinates.geo.degrees import GeoEncoder

__all__ = ['GeoEncoder', 'geo_sh', 'one_scale', 'space2vec', 'sphere2vec']
__dir__ = __all__.copy
