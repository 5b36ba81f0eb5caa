"""The base class of encoders with several scales: the radii, and the sines and cosines of longitude
and latitude divided by each radius.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.features.coordinates.encoder import limited
from posenc_jax.features.coordinates.geo.degrees import GeoEncoder
from posenc_jax.protocol.errors import check_number

SMALLEST = 1e-6  # degrees; below it, an angle in float32 is off by a tenth of a radian


class Waves(NamedTuple):
    """Sines and cosines at every scale, float32: of `lam_k = longitude / tau_k` and of `phi_k =
    latitude / tau_k`.
    """

    sin_lam: Float[Array, '... F']
    cos_lam: Float[Array, '... F']
    sin_phi: Float[Array, '... F']
    cos_phi: Float[Array, '... F']


def geo_radii(scales: int, rmin: float = 1.0, rmax: float = 360.0) -> Float[np.ndarray, 'F']:
    """`tau_k = rmin (rmax / rmin)^(k / (F - 1))`, k = 0 .. F - 1, float64.

    Args:
      scales: F. A single scale is rmin.
      rmin, rmax: the smallest and the largest radius, in degrees.

    Raises:
      ValueError: fewer than one scale, an rmin below 1e-6, or an rmax below rmin.

    Example:
      >>> geo_radii(3, 1.0, 100.0).round(4).tolist()
      [1.0, 10.0, 100.0]
    """
    if scales < 1:
        raise ValueError(f'scales must be at least 1, got {scales}')
    check_number('rmin', rmin, above=0, least=SMALLEST)
    check_number('rmax', rmax, least=rmin)
    return rmin * (rmax / rmin) ** (np.arange(scales) / max(scales - 1, 1))


def waves(coords: Num[Array, '... 2'], tau: Float[np.ndarray, 'F']) -> Waves:
    """The sines and cosines of degrees over radii, which are taken as radians.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees.
    """
    lam, phi = (phase(coords[..., i], 1 / tau) for i in range(2))
    return Waves(jnp.sin(lam), jnp.cos(lam), jnp.sin(phi), jnp.cos(phi))


def by_scale(*terms: Float[Array, '... F']) -> Float[Array, '... width']:
    """Terms with a value for each scale as one vector, scale by scale."""
    *batch, scales = terms[0].shape
    return jnp.stack(terms, axis=-1).reshape(*batch, scales * len(terms))


class MultiScale(GeoEncoder):
    """An encoder with F radii: `tau_k = rmin (rmax / rmin)^(k / (F - 1))`, `lam_k = lon / tau_k`,
    `phi_k = lat / tau_k`.

    The scales are those of the released code of arXiv 2310.06743, which divides degrees by a radius
    and takes the quotient as radians. A subclass has `size` and `encode`.

    Args:
      scales: F, the number of radii.
      rmin, rmax: the smallest and the largest radius, in degrees.

    Raises:
      ValueError: no scale, more than 2^20 features, an rmin below 1e-6, an rmax below rmin; at
        call, coordinates that are not (longitude, latitude) in degrees.
    """

    def __init__(self, scales: int = 16, rmin: float = 1.0, rmax: float = 360.0):
        self.width = limited(f'{type(self).card.key}: scales={scales} give', self.size(scales))
        geo_radii(scales, rmin, rmax)  # refuses wrong values
        self.scales, self.rmin, self.rmax = scales, rmin, rmax

    def size(self, scales: int) -> int:
        """The number of features of that many scales."""
        raise NotImplementedError

    @property
    def tau(self) -> Float[np.ndarray, 'F']:
        """The radii in degrees."""
        return geo_radii(self.scales, self.rmin, self.rmax)
