"""Points of the sphere at several scales (Sphere2Vec-sphereC)."""

import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.features.coordinates.geo.multi_scale import Deduplicated, by_scale, waves
from posenc_jax.protocol.registry import Card, register


def spherec(
    coords: Num[Array, '... 2'], tau: Float[np.ndarray, 'F'], repeats: int = 1
) -> Float[Array, '... width']:
    """`[sin phi_k, cos phi_k cos lam_k, cos phi_k sin lam_k]` for every k, float32.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees.
      repeats: how often in a row every feature is written.
    """
    of = waves(coords, tau)
    return by_scale(of.sin_phi, of.cos_phi * of.cos_lam, of.cos_phi * of.sin_lam, repeats=repeats)


@register(
    'geo_spherec',
    kind='coordinates',
    card=Card(
        name='sphereC',
        title='Sphere2Vec: A General-Purpose Location Representation Learning over a '
        'Spherical Surface for Large-Scale Geospatial Predictions',
        arxiv='2306.17624',
        door='embed',
        equation='per k [sin phi_k, cos phi_k cos lam_k, cos phi_k sin lam_k], lam_k = lon / '
        'tau_k, phi_k = lat / tau_k',
        source='MarcCoru/locationencoder',
        authors='Mai, Gengchen and Xuan, Yao and Zuo, Wenyun and He, Yutong and Song, Jiaming '
        'and Ermon, Stefano and Janowicz, Krzysztof and Lao, Ni',
        year=2023,
        example='geo_spherec(scales=4)',
        share='model',
    ),
)
class GeoSphereC(Deduplicated):
    """The point of the sphere whose longitude and latitude are divided by a radius, for F radii.

    `tau_k = rmin (rmax / rmin)^(k / (F - 1))`, `lam_k = lon / tau_k`, `phi_k = lat / tau_k`; for
    every k the features `[sin phi_k, cos phi_k cos lam_k, cos phi_k sin lam_k]`, 3F in all. Differs
    from the paper: the scales are those of the released code of arXiv 2310.06743, which divides
    degrees by a radius and takes the quotient as radians.

    Args:
      scales: F, the number of radii.
      rmin, rmax: the smallest and the largest radius, in degrees.
      dedup: whether every feature is written once. The released code writes each of them twice in a
        row, which only adds columns; False gives that form.

    Raises:
      ValueError: no scale, more than 2^20 features, an rmin below 1e-6, an rmax below rmin;
        at call, coordinates that are not (longitude, latitude) in degrees.

    Reference: Mai et al., arXiv 2306.17624.

    Example:
      >>> import jax.numpy as jnp
      >>> from posenc_jax.features.coordinates import make_features
      >>> encoder = make_features('geo_spherec(scales=8)')
      >>> encoder.encode(jnp.zeros((5, 2))).shape
      (5, 24)
    """

    per_scale = 3

    def encode(self, coords):
        return spherec(self.check(coords), self.tau, self.repeats)
