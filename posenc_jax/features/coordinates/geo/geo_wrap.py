"""Sines and cosines of longitude and latitude."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from posenc_jax.features.coordinates.geo.degrees import RADIAN, GeoEncoder
from posenc_jax.protocol.registry import Card, register


def wrap(coords: Num[Array, '... 2']) -> Float[Array, '... 4']:
    """`[cos lon, sin lon, cos lat, sin lat]`, float32.

    Args:
      coords: (longitude, latitude) in degrees.
    """
    angles = coords.astype(jnp.float32) * RADIAN
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1).reshape(*coords.shape[:-1], 4)


@register(
    'geo_wrap',
    kind='coordinates',
    card=Card(
        name='wrap',
        title='Presence-Only Geographical Priors for Fine-Grained Image Classification',
        arxiv='1906.05272',
        door='embed',
        equation='[cos lon, sin lon, cos lat, sin lat]',
        source='MarcCoru/locationencoder',
        authors='Mac Aodha, Oisin and Cole, Elijah and Perona, Pietro',
        year=2019,
        example='geo_wrap()',
        share='model',
    ),
)
class GeoWrap(GeoEncoder):
    """Both coordinates on circles, so that the longitudes -180 and 180 are one.

    `[cos lon, sin lon, cos lat, sin lat]`. Differs from the paper: both angles are in degrees, as
    in the released code of arXiv 2310.06743; the paper divides each coordinate by its largest value
    first, so that the latitudes -90 .. 90 are a whole turn too.

    Raises:
      ValueError: at call, coordinates that are not (longitude, latitude) in degrees.

    Reference: Mac Aodha, Cole, Perona, arXiv 1906.05272.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> make_features('geo_wrap()').encode(jnp.array([[-180.0, 0.0]])).round(4).tolist()
      [[-1.0, 0.0, 1.0, 0.0]]
    """

    seamless = True

    def __init__(self):
        self.width = 4

    def encode(self, coords):
        return wrap(self.check(coords))
