"""Space2Vec: sines and cosines at several scales, along the two coordinates or three directions."""

import jax.numpy as jnp

from posenc_jax.base.phases import phase
from posenc_jax.features.coordinates.geo.multi_scale import MultiScale, by_scale, waves
from posenc_jax.protocol.registry import Card, register

# Three directions with angles of 120 degrees between them: factors of longitude and latitude.
DIRECTIONS = ((1.0, 0.0), (-0.5, 3**0.5 / 2), (-0.5, -(3**0.5) / 2))


@register(
    'geo_grid',
    kind='coordinates',
    card=Card(name='grid', example='geo_grid(scales=4)', share='model'),
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
        of = waves(self.check(coords), self.tau)
        return jnp.concatenate(
            [by_scale(of.sin_lam, of.cos_lam), by_scale(of.sin_phi, of.cos_phi)], axis=-1
        )


@register(
    'geo_theory',
    kind='coordinates',
    card=Card(name='theory', example='geo_theory(scales=4)', share='model'),
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
        coords = self.check(coords)
        lon, lat, tau = coords[..., 0], coords[..., 1], self.tau
        angles = [phase(lon, along / tau) + phase(lat, up / tau) for along, up in DIRECTIONS]
        return by_scale(*(wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)))
