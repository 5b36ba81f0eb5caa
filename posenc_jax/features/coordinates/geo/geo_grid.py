"""Sines and cosines of longitude and latitude at several scales."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.features.coordinates.geo.multi_scale import MultiScale, by_scale, waves
from posenc_jax.protocol.registry import Card, register


def grid(coords: Num[Array, '... 2'], tau: Float[np.ndarray, 'F']) -> Float[Array, '... width']:
    """`[sin lam_0, cos lam_0, sin lam_1, ...; sin phi_0, cos phi_0, ...]`, 4F features, float32.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees.
    """
    of = waves(coords, tau)
    return jnp.concatenate(
        [by_scale(of.sin_lam, of.cos_lam), by_scale(of.sin_phi, of.cos_phi)], axis=-1
    )


@register(
    'geo_grid',
    kind='coordinates',
    card=Card(
        name='grid',
        title='Multi-Scale Representation Learning for Spatial Feature Distributions using '
        'Grid Cells',
        arxiv='2003.00824',
        door='embed',
        equation='tau_k = rmin (rmax/rmin)^(k/(F-1)), lam_k = lon / tau_k, phi_k = lat / tau_k; '
        '[sin lam_0, cos lam_0, sin lam_1, ...; sin phi_0, cos phi_0, ...]',
        source='MarcCoru/locationencoder',
        authors='Mai, Gengchen and Janowicz, Krzysztof and Yan, Bo and Zhu, Rui and Cai, Ling '
        'and Lao, Ni',
        year=2020,
        example='geo_grid(scales=4)',
        share='model',
    ),
)
class GeoGrid(MultiScale):
    """Sines and cosines of each coordinate at F scales.

    `tau_k = rmin (rmax / rmin)^(k / (F - 1))`, `lam_k = lon / tau_k`, `phi_k = lat / tau_k`, 4F
    features `[sin lam_0, cos lam_0, sin lam_1, ...; sin phi_0, cos phi_0, ...]`. Differs from the
    paper: the scales are those of the released code of arXiv 2310.06743, which divides degrees by a
    radius and takes the quotient as radians.

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
      >>> encoder = make_features('geo_grid(scales=8)')
      >>> encoder.encode(jnp.zeros((5, 2))).shape
      (5, 32)
    """

    per_scale = 4

    def encode(self, coords):
        return grid(self.check(coords), self.tau)
