"""Sines and cosines along three directions of the map at several scales."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.features.coordinates.geo.multi_scale import MultiScale, by_scale
from posenc_jax.protocol.registry import Card, register

# Three directions with angles of 120 degrees between them: factors of longitude and latitude.
DIRECTIONS = ((1.0, 0.0), (-0.5, 3**0.5 / 2), (-0.5, -(3**0.5) / 2))


def theory(coords: Num[Array, '... 2'], tau: Float[np.ndarray, 'F']) -> Float[Array, '... width']:
    """Sine and cosine of each of three directions over tau_k, 6F features scale by scale, float32.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees.
    """
    lon, lat = coords[..., 0], coords[..., 1]
    angles = [phase(lon, along / tau) + phase(lat, up / tau) for along, up in DIRECTIONS]
    return by_scale(*(wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)))


@register(
    'geo_theory',
    kind='coordinates',
    card=Card(
        name='theory',
        title='Multi-Scale Representation Learning for Spatial Feature Distributions using '
        'Grid Cells',
        arxiv='2003.00824',
        door='embed',
        equation='a1 = lon, a2 = -lon/2 + sqrt(3)/2 lat, a3 = -lon/2 - sqrt(3)/2 lat; per k '
        '[sin(a1/tau_k), cos(a1/tau_k), sin(a2/tau_k), cos(a2/tau_k), sin(a3/tau_k), '
        'cos(a3/tau_k)]',
        source='MarcCoru/locationencoder',
        authors='Mai, Gengchen and Janowicz, Krzysztof and Yan, Bo and Zhu, Rui and Cai, Ling '
        'and Lao, Ni',
        year=2020,
        example='geo_theory(scales=4)',
        share='model',
    ),
)
class GeoTheory(MultiScale):
    """Sines and cosines along three directions of the map, as of grid cells, at F scales.

    `a1 = lon`, `a2 = -lon/2 + sqrt(3)/2 lat`, `a3 = -lon/2 - sqrt(3)/2 lat`; for every radius
    `tau_k = rmin (rmax / rmin)^(k / (F - 1))` the features `[sin(a1/tau_k), cos(a1/tau_k),
    sin(a2/tau_k), cos(a2/tau_k), sin(a3/tau_k), cos(a3/tau_k)]`, 6F in all. Differs from the paper:
    the scales are those of the released code of arXiv 2310.06743, which divides degrees by a radius
    and takes the quotient as radians; its exchange of sines and cosines at an odd F is left out.

    Args:
      scales: F, the number of radii.
      rmin, rmax: the smallest and the largest radius, in degrees.

    Raises:
      ValueError: no scale, more than 2^20 features, an rmin below 1e-6, an rmax below rmin;
        at call, coordinates that are not (longitude, latitude) in degrees.

    Reference: Mai et al., arXiv 2003.00824.

    Example:
      >>> import jax.numpy as jnp
      >>> from posenc_jax.features.coordinates import make_features
      >>> encoder = make_features('geo_theory(scales=8)')
      >>> encoder.encode(jnp.zeros((5, 2))).shape
      (5, 48)
    """

    per_scale = 6

    def encode(self, coords):
        return theory(self.check(coords), self.tau)
