"""Products of scaled and unscaled coordinates (Sphere2Vec-sphereM)."""

from typing import Literal

import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.features.coordinates.geo.degrees import RADIAN
from posenc_jax.features.coordinates.geo.multi_scale import Deduplicated, Waves, by_scale, waves
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, register

Unit = Literal['deg_as_rad', 'rad']
UNITS = {'deg_as_rad': 1.0, 'rad': 1 / RADIAN}  # the radius that leaves a coordinate unscaled


def mixed_products(
    coords: Num[Array, '... 2'], of: Waves, unit: Unit = 'deg_as_rad'
) -> tuple[Float[Array, '... F'], ...]:
    """Products of one scaled and one unscaled coordinate: `cos phi_k cos lam`, `cos phi cos lam_k`,
    `cos phi_k sin lam`, `cos phi sin lam_k`.

    Args:
      coords: (longitude, latitude) in degrees.
      of: the waves of the scales.
      unit: of the unscaled lam and phi: 'deg_as_rad', the number of degrees taken as radians; or
        'rad', radians.
    """
    one = waves(coords, np.array([UNITS[check_choice('single_scale_unit', unit, UNITS)]]))
    return (
        *(of.cos_phi * one.cos_lam, one.cos_phi * of.cos_lam),
        *(of.cos_phi * one.sin_lam, one.cos_phi * of.sin_lam),
    )


def spherem(
    coords: Num[Array, '... 2'],
    tau: Float[np.ndarray, 'F'],
    unit: Unit = 'deg_as_rad',
    repeats: int = 1,
) -> Float[Array, '... width']:
    """`sin phi_k` and the four products of `mixed_products` for every k, float32.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees.
      unit: as for `mixed_products`.
      repeats: how often in a row every feature is written.
    """
    of = waves(coords, tau)
    return by_scale(of.sin_phi, *mixed_products(coords, of, unit), repeats=repeats)


class PartlyScaled(Deduplicated):
    """A `Deduplicated` encoder that also reads the unscaled coordinates.

    Attributes:
      unit: how these become angles, see `mixed_products`.
    """

    def __init__(
        self,
        scales: int = 16,
        rmin: float = 1.0,
        rmax: float = 360.0,
        dedup: bool = True,
        single_scale_unit: Unit = 'deg_as_rad',
    ):
        super().__init__(scales, rmin, rmax, dedup)
        key = type(self).card.key
        self.unit = check_choice(f'{key} single_scale_unit', single_scale_unit, UNITS)


@register(
    'geo_spherem',
    kind='coordinates',
    card=Card(
        name='sphereM',
        title='Sphere2Vec: A General-Purpose Location Representation Learning over a '
        'Spherical Surface for Large-Scale Geospatial Predictions',
        arxiv='2306.17624',
        door='embed',
        equation='per k [sin phi_k, cos phi_k cos lam, cos phi cos lam_k, cos phi_k sin lam, cos'
        ' phi sin lam_k]',
        source='MarcCoru/locationencoder',
        authors='Mai, Gengchen and Xuan, Yao and Zuo, Wenyun and He, Yutong and Song, Jiaming '
        'and Ermon, Stefano and Janowicz, Krzysztof and Lao, Ni',
        year=2023,
        example='geo_spherem(scales=4)',
        share='model',
    ),
)
class GeoSphereM(PartlyScaled):
    """Points of the sphere of which one coordinate at a time is divided by a radius, for F radii.

    `tau_k = rmin (rmax / rmin)^(k / (F - 1))`, `lam_k = lon / tau_k`, `phi_k = lat / tau_k`; for
    every k the features `[sin phi_k, cos phi_k cos lam, cos phi cos lam_k, cos phi_k sin lam, cos
    phi sin lam_k]`, 5F in all. Differs from the paper: the scales are those of the released code of
    arXiv 2310.06743, which divides degrees by a radius and takes the quotient as radians; the
    unscaled lam and phi are degrees taken as radians in that code and radians in the paper, see
    `single_scale_unit`.

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
      >>> encoder = make_features('geo_spherem(scales=8)')
      >>> encoder.encode(jnp.zeros((5, 2))).shape
      (5, 40)
    """

    per_scale = 5

    def encode(self, coords):
        return spherem(self.check(coords), self.tau, self.unit, self.repeats)
