"""Products of scaled and unscaled coordinates, joined with their sines and cosines
(Sphere2Vec-sphereM+).
"""

import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.features.coordinates.geo.geo_spherem import PartlyScaled, Unit, mixed_products
from posenc_jax.features.coordinates.geo.multi_scale import by_scale, waves
from posenc_jax.protocol.registry import Card, register


def spheremplus(
    coords: Num[Array, '... 2'],
    tau: Float[np.ndarray, 'F'],
    unit: Unit = 'deg_as_rad',
    repeats: int = 1,
) -> Float[Array, '... width']:
    """`[sin phi_k, cos phi_k, sin lam_k, cos lam_k]` and the four products of `mixed_products` for
    every k, float32.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees.
      unit: as for `mixed_products`.
      repeats: how often in a row every feature is written.
    """
    of = waves(coords, tau)
    return by_scale(
        *(of.sin_phi, of.cos_phi, of.sin_lam, of.cos_lam),
        *mixed_products(coords, of, unit),
        repeats=repeats,
    )


@register(
    'geo_spheremplus',
    kind='coordinates',
    card=Card(
        name='sphereM+',
        title='Sphere2Vec: A General-Purpose Location Representation Learning over a '
        'Spherical Surface for Large-Scale Geospatial Predictions',
        arxiv='2306.17624',
        door='embed',
        equation='per k [sin phi_k, cos phi_k, sin lam_k, cos lam_k, cos phi_k cos lam, cos phi '
        'cos lam_k, cos phi_k sin lam, cos phi sin lam_k]',
        source='MarcCoru/locationencoder',
        authors='Mai, Gengchen and Xuan, Yao and Zuo, Wenyun and He, Yutong and Song, Jiaming '
        'and Ermon, Stefano and Janowicz, Krzysztof and Lao, Ni',
        year=2023,
        example='geo_spheremplus(scales=4)',
        share='model',
    ),
)
class GeoSphereMPlus(PartlyScaled):
    """The four products of `geo_spherem`, and the sines and cosines of each coordinate.

    `tau_k = rmin (rmax / rmin)^(k / (F - 1))`, `lam_k = lon / tau_k`, `phi_k = lat / tau_k`; for
    every k the features `[sin phi_k, cos phi_k, sin lam_k, cos lam_k, cos phi_k cos lam, cos phi
    cos lam_k, cos phi_k sin lam, cos phi sin lam_k]`, 8F in all. Differs from the paper: as
    `geo_spherem`.

    Args:
      scales: F, the number of radii.
      rmin, rmax: the smallest and the largest radius, in degrees.
      dedup: whether every feature is written once. The released code writes each of them twice in a
        row, which only adds columns; False gives that form.
      single_scale_unit: how the unscaled longitude and latitude become angles: 'deg_as_rad', the
        number of degrees is taken as radians, as in the released code; 'rad', they are converted.

    Raises:
      ValueError: no scale, more than 2^20 features, an rmin below 1e-6, an rmax below rmin;
        at call, coordinates that are not (longitude, latitude) in degrees.

    Reference: Mai et al., arXiv 2306.17624.

    Example:
      >>> import jax.numpy as jnp
      >>> from posenc_jax.features.coordinates import make_features
      >>> encoder = make_features('geo_spheremplus(scales=8)')
      >>> encoder.encode(jnp.zeros((5, 2))).shape
      (5, 64)
    """

    per_scale = 8

    def encode(self, coords):
        return spheremplus(self.check(coords), self.tau, self.unit, self.repeats)
