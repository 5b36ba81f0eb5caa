"""Encoders of places on the globe: (longitude, latitude) in degrees."""

from posenc_jax.features.coordinates.geo import (
    geo_cartesian3d,
    geo_dfs,
    geo_direct,
    geo_grid,
    geo_sh,
    geo_spherec,
    geo_spherecplus,
    geo_spherem,
    geo_spheremplus,
    geo_theory,
    geo_wrap,
)
from posenc_jax.features.coordinates.geo.degrees import GeoEncoder

__all__ = [
    'GeoEncoder',
    'geo_cartesian3d',
    'geo_dfs',
    'geo_direct',
    'geo_grid',
    'geo_sh',
    'geo_spherec',
    'geo_spherecplus',
    'geo_spherem',
    'geo_spheremplus',
    'geo_theory',
    'geo_wrap',
]
__dir__ = __all__.copy
