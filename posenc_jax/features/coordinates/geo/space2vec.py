"""Space2Vec: sines and cosines at several scales, along the two coordinates or three directions."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.features.coordinates.geo.multi_scale import MultiScale, by_scale, waves
from posenc_jax.protocol.registry import Card, register

# Three directions with angles of 120 degrees between them: factors of longitude and latitude.
DIRECTIONS = ((1.0, 0.0), (-0.5, 3**0.5 / 2), (-0.5, -(3**0.5) / 2))


def geo_grid(coords: Num[Array, '... 2'], tau: Float[np.ndarray, 'F']) -> Float[Array, '... width']:
    """`[sin lam_0, cos lam_0, sin lam_1, ...; sin phi_0, cos phi_0, ...]`, 4F features.

    `lam_k = lon / tau_k` and `phi_k = lat / tau_k` are taken as radians.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees, see `geo_radii`.

    Reference: Mai et al., arXiv 2003.00824.

    Example:
      >>> geo_grid(jnp.zeros(2), np.array([1.0, 10.0])).tolist()
      [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    """
    of = waves(coords, tau)
    return jnp.concatenate(
        [by_scale(of.sin_lam, of.cos_lam), by_scale(of.sin_phi, of.cos_phi)], axis=-1
    )


def geo_theory(
    coords: Num[Array, '... 2'], tau: Float[np.ndarray, 'F']
) -> Float[Array, '... width']:
    """`[sin(a1/tau_k), cos(a1/tau_k), sin(a2/tau_k), ..., cos(a3/tau_k)]` for every k, 6F features,
    along three directions a1, a2 and a3 of the map with angles of 120 degrees between them.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees, see `geo_radii`.

    Reference: Mai et al., arXiv 2003.00824.

    Example:
      >>> geo_theory(jnp.zeros(2), np.array([1.0])).tolist()
      [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    """
    lon, lat = coords[..., 0], coords[..., 1]
    angles = [phase(lon, along / tau) + phase(lat, up / tau) for along, up in DIRECTIONS]
    return by_scale(*(wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)))


@register(
    'geo_grid',
    kind='coordinates',
    card=Card(
        name='grid',
        example='geo_grid(scales=4)',
        use_when=(
            'You have places in a region far from the poles and want detail at several scales.'
        ),
        share='model',
    ),
)
class GeoGrid(MultiScale):
    """Sines and cosines of each coordinate at F scales.

    `[sin lam_0, cos lam_0, sin lam_1, ...; sin phi_0, cos phi_0, ...]`, 4F features, with the waves
    of `MultiScale`. Differs from the paper: the scales, see `MultiScale`. Arguments and errors are
    those of `MultiScale`.

    Reference: Mai et al., arXiv 2003.00824.
    """

    def size(self, scales: int) -> int:
        return 4 * scales

    def encode(self, coords):
        return geo_grid(self.check(coords), self.tau)


@register(
    'geo_theory',
    kind='coordinates',
    card=Card(
        name='theory',
        example='geo_theory(scales=4)',
        use_when='You have places on a map or in a plane and want no axis to be preferred.',
        share='model',
    ),
)
class GeoTheory(MultiScale):
    """Sines and cosines along three directions of the map, as of grid cells, at F scales.

    `a1 = lon`, `a2 = -lon/2 + sqrt(3)/2 lat`, `a3 = -lon/2 - sqrt(3)/2 lat`; for every k the
    features `[sin(a1/tau_k), cos(a1/tau_k), sin(a2/tau_k), cos(a2/tau_k), sin(a3/tau_k),
    cos(a3/tau_k)]`, 6F in all. Differs from the paper: the scales, see `MultiScale`; the exchange
    of sines and cosines at an odd F in the released code is left out. Arguments and errors are
    those of `MultiScale`.

    Reference: Mai et al., arXiv 2003.00824.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> make_features('geo_theory(scales=8)').encode(jnp.zeros((5, 2))).shape
      (5, 48)
    """

    def size(self, scales: int) -> int:
        return 6 * scales

    def encode(self, coords):
        return geo_theory(self.check(coords), self.tau)
