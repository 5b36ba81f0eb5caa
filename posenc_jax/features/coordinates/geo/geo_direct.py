"""Longitude and latitude themselves, in radians less pi."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from posenc_jax.features.coordinates.geo.degrees import RADIAN, GeoEncoder
from posenc_jax.protocol.registry import Card, register


def direct(coords: Num[Array, '... 2']) -> Float[Array, '... 2']:
    """`rad(coords) - pi`, float32.

    Args:
      coords: (longitude, latitude) in degrees.
    """
    return coords.astype(jnp.float32) * RADIAN - jnp.pi


@register(
    'geo_direct',
    kind='coordinates',
    card=Card(
        name='direct',
        title='Geographic Location Encoding with Spherical Harmonics and Sinusoidal '
        'Representation Networks',
        arxiv='2310.06743',
        door='embed',
        equation='[rad(lon) - pi, rad(lat) - pi]',
        source='MarcCoru/locationencoder',
        authors='Rußwurm, Marc and Klemmer, Konstantin and Rolf, Esther and Zbinden, Robin and '
        'Tuia, Devis',
        year=2023,
        example='geo_direct()',
        share='model',
    ),
)
class GeoDirect(GeoEncoder):
    """The place in radians less pi, the baseline without an encoding.

    `[rad(lon) - pi, rad(lat) - pi]`. The offset is applied to the latitude too, as in the released
    code. Differs from the paper: nothing.

    Raises:
      ValueError: at call, coordinates that are not (longitude, latitude) in degrees.

    Reference: Rußwurm et al., arXiv 2310.06743.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> make_features('geo_direct()').encode(jnp.array([[180.0, 0.0]])).round(4).tolist()
      [[0.0, -3.1416]]
    """

    def __init__(self):
        self.width = 2

    def encode(self, coords):
        return direct(self.check(coords))
