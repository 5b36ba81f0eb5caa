"""The point on the unit sphere."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from posenc_jax.features.coordinates.geo.degrees import RADIAN, GeoEncoder
from posenc_jax.protocol.registry import Card, register


def cartesian3d(coords: Num[Array, '... 2']) -> Float[Array, '... 3']:
    """`[cos lon cos lat, sin lon cos lat, sin lat]`, float32.

    Args:
      coords: (longitude, latitude) in degrees.
    """
    lon, lat = (coords[..., i].astype(jnp.float32) * RADIAN for i in range(2))
    across = jnp.cos(lat)
    return jnp.stack([jnp.cos(lon) * across, jnp.sin(lon) * across, jnp.sin(lat)], axis=-1)


@register(
    'geo_cartesian3d',
    kind='coordinates',
    card=Card(
        name='Cartesian3D',
        title='Geographic Location Encoding with Spherical Harmonics and Sinusoidal '
        'Representation Networks',
        arxiv='2310.06743',
        door='embed',
        equation='[cos lon cos lat, sin lon cos lat, sin lat]',
        source='MarcCoru/locationencoder',
        authors='Rußwurm, Marc and Klemmer, Konstantin and Rolf, Esther and Zbinden, Robin and '
        'Tuia, Devis',
        year=2023,
        example='geo_cartesian3d()',
        share='model',
    ),
)
class GeoCartesian3D(GeoEncoder):
    """The place as a point of the unit sphere.

    `[cos lon cos lat, sin lon cos lat, sin lat]`. Inner products are the cosines of great-circle
    distances. Differs from the paper: nothing.

    Raises:
      ValueError: at call, coordinates that are not (longitude, latitude) in degrees.

    Reference: Rußwurm et al., arXiv 2310.06743.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> make_features('geo_cartesian3d()').encode(jnp.array([[0.0, 30.0]])).round(4).tolist()
      [[0.8660, 0.0, 0.5]]
    """

    seamless = True

    def __init__(self):
        self.width = 3

    def encode(self, coords):
        return cartesian3d(self.check(coords))
