"""Encoders of places at the scale of the globe: radians, two circles, and the unit sphere."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from posenc_jax.features.coordinates.geo.degrees import RADIAN, GeoEncoder
from posenc_jax.protocol.registry import Card, register


def geo_direct(coords: Num[Array, '... 2']) -> Float[Array, '... 2']:
    """`[rad(lon) - pi, rad(lat) - pi]` of (longitude, latitude) in degrees.

    Reference: Rußwurm et al., arXiv 2310.06743.

    Example:
      >>> geo_direct(jnp.array([180.0, 0.0])).round(4).tolist()
      [0.0, -3.1416]
    """
    return coords * RADIAN - jnp.pi


def geo_wrap(coords: Num[Array, '... 2']) -> Float[Array, '... 4']:
    """`[cos lon, sin lon, cos lat, sin lat]` of (longitude, latitude) in degrees.

    Reference: Mac Aodha, Cole, Perona, arXiv 1906.05272.

    Example:
      >>> geo_wrap(jnp.array([0.0, 90.0])).round(4).tolist()
      [1.0, 0.0, 0.0, 1.0]
    """
    angles = coords * RADIAN
    both = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return both.reshape(*angles.shape[:-1], 4)


def geo_cartesian3d(coords: Num[Array, '... 2']) -> Float[Array, '... 3']:
    """`[cos lon cos lat, sin lon cos lat, sin lat]` of (longitude, latitude) in degrees.

    Reference: Rußwurm et al., arXiv 2310.06743.

    Example:
      >>> geo_cartesian3d(jnp.array([0.0, 30.0])).round(4).tolist()
      [0.8660, 0.0, 0.5]
    """
    lon, lat = (coords[..., i] * RADIAN for i in range(2))
    across = jnp.cos(lat)
    return jnp.stack([jnp.cos(lon) * across, jnp.sin(lon) * across, jnp.sin(lat)], axis=-1)


@register(
    'geo_direct',
    kind='coordinates',
    card=Card(
        name='direct',
        example='geo_direct()',
        use_when=(
            'You want the baseline for places on the globe: longitude and latitude as they are.'
        ),
        share='model',
    ),
)
class GeoDirect(GeoEncoder):
    """The place in radians less pi, the baseline without an encoding.

    `[rad(lon) - pi, rad(lat) - pi]`. The offset is applied to the latitude too, as in the released
    code. Differs from the paper: nothing. Errors are those of `GeoEncoder`.

    Reference: Rußwurm et al., arXiv 2310.06743.
    """

    width = 2

    def encode(self, coords):
        return geo_direct(self.check(coords))


@register(
    'geo_wrap',
    kind='coordinates',
    card=Card(
        name='wrap',
        example='geo_wrap()',
        use_when=(
            'You have places on the globe, some of them near the date line, and want a '
            'small baseline.'
        ),
        share='model',
    ),
)
class GeoWrap(GeoEncoder):
    """Both coordinates on circles, so that the longitudes -180 and 180 are one.

    `[cos lon, sin lon, cos lat, sin lat]`. Differs from the paper: both angles are in degrees, as
    in the released code of arXiv 2310.06743; the paper divides each coordinate by its largest value
    first, so that the latitudes -90 .. 90 are a whole turn too. Errors are those of `GeoEncoder`.

    Reference: Mac Aodha, Cole, Perona, arXiv 1906.05272.
    """

    width = 4
    seamless = True

    def encode(self, coords):
        return geo_wrap(self.check(coords))


@register(
    'geo_cartesian3d',
    kind='coordinates',
    card=Card(
        name='Cartesian3D',
        example='geo_cartesian3d()',
        use_when=(
            'You have places on the globe and want the simplest features that know that '
            'it is round.'
        ),
        share='model',
    ),
)
class GeoCartesian3D(GeoEncoder):
    """The place as a point of the unit sphere.

    `[cos lon cos lat, sin lon cos lat, sin lat]`. Inner products are the cosines of great-circle
    distances. Differs from the paper: nothing. Errors are those of `GeoEncoder`.

    Reference: Rußwurm et al., arXiv 2310.06743.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> make_features('geo_cartesian3d()').encode(jnp.array([[0.0, 30.0]])).round(4).tolist()
      [[0.8660, 0.0, 0.5]]
    """

    width = 3
    seamless = True

    def encode(self, coords):
        return geo_cartesian3d(self.check(coords))
