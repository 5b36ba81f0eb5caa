"""Sphere2Vec: points of the sphere at several scales, and products of their sines and cosines."""

from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.features.coordinates.geo.degrees import RADIAN
from posenc_jax.features.coordinates.geo.multi_scale import MultiScale, Waves, by_scale, waves
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, register

Unit = Literal['deg_as_rad', 'rad']
UNITS = {'deg_as_rad': 1.0, 'rad': 1 / RADIAN}  # the radius that leaves a coordinate unscaled


def geo_spherec(
    coords: Num[Array, '... 2'], tau: Float[np.ndarray, 'F']
) -> Float[Array, '... width']:
    """`[sin phi_k, cos phi_k cos lam_k, cos phi_k sin lam_k]` for every k, 3F features.

    `lam_k = lon / tau_k` and `phi_k = lat / tau_k` are taken as radians.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees, see `geo_radii`.

    Reference: Mai et al., arXiv 2306.17624.

    Example:
      >>> geo_spherec(jnp.zeros(2), np.array([1.0])).tolist()
      [0.0, 1.0, 0.0]
    """
    of = waves(coords, tau)
    return by_scale(of.sin_phi, of.cos_phi * of.cos_lam, of.cos_phi * of.sin_lam)


def geo_spherecplus(
    coords: Num[Array, '... 2'], tau: Float[np.ndarray, 'F']
) -> Float[Array, '... width']:
    """The features of `geo_spherec` behind `sin phi_k, cos phi_k, sin lam_k, cos lam_k`, 6F in all:
    `[sin phi_k, cos phi_k, sin lam_k, cos lam_k, cos phi_k cos lam_k, cos phi_k sin lam_k]`.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees, see `geo_radii`.

    Reference: Mai et al., arXiv 2306.17624.

    Example:
      >>> geo_spherecplus(jnp.zeros(2), np.array([1.0])).tolist()
      [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    """
    of = waves(coords, tau)
    return by_scale(
        *(of.sin_phi, of.cos_phi, of.sin_lam, of.cos_lam),
        *(of.cos_phi * of.cos_lam, of.cos_phi * of.sin_lam),
    )


def _partly_scaled(coords, of: Waves, unit: Unit) -> tuple[Float[Array, '... F'], ...]:
    """`cos phi_k cos lam`, `cos phi cos lam_k`, `cos phi_k sin lam`, `cos phi sin lam_k`."""
    one = waves(coords, np.array([UNITS[unit]]))
    return (
        *(of.cos_phi * one.cos_lam, one.cos_phi * of.cos_lam),
        *(of.cos_phi * one.sin_lam, one.cos_phi * of.sin_lam),
    )


def geo_spherem(
    coords: Num[Array, '... 2'], tau: Float[np.ndarray, 'F'], unit: Unit = 'deg_as_rad'
) -> Float[Array, '... width']:
    """`[sin phi_k, cos phi_k cos lam, cos phi cos lam_k, cos phi_k sin lam, cos phi sin lam_k]` for
    every k, 5F features: one coordinate at a time is divided by a radius.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees, see `geo_radii`.
      unit: how the unscaled lam and phi become angles: 'deg_as_rad', the number of degrees is taken
        as radians; 'rad', they are converted.

    Reference: Mai et al., arXiv 2306.17624.

    Example:
      >>> geo_spherem(jnp.zeros(2), np.array([1.0])).tolist()
      [0.0, 1.0, 1.0, 0.0, 0.0]
    """
    of = waves(coords, tau)
    return by_scale(of.sin_phi, *_partly_scaled(coords, of, unit))


def geo_spheremplus(
    coords: Num[Array, '... 2'], tau: Float[np.ndarray, 'F'], unit: Unit = 'deg_as_rad'
) -> Float[Array, '... width']:
    """The four products of `geo_spherem` behind `sin phi_k, cos phi_k, sin lam_k, cos lam_k`, 8F
    features in all.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees, see `geo_radii`.
      unit: how the unscaled lam and phi become angles: 'deg_as_rad', the number of degrees is taken
        as radians; 'rad', they are converted.

    Reference: Mai et al., arXiv 2306.17624.

    Example:
      >>> geo_spheremplus(jnp.zeros(2), np.array([1.0])).tolist()
      [0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    """
    of = waves(coords, tau)
    each = of.sin_phi, of.cos_phi, of.sin_lam, of.cos_lam
    return by_scale(*each, *_partly_scaled(coords, of, unit))


def geo_dfs(coords: Num[Array, '... 2'], tau: Float[np.ndarray, 'F']) -> Float[Array, '... width']:
    """`[sin phi_n, cos phi_n; sin lam_m, cos lam_m; cos phi_n cos lam_m, cos phi_n sin lam_m, sin
    phi_n cos lam_m, sin phi_n sin lam_m]` for every n, every m and every pair, 4F + 4F^2 features.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees, see `geo_radii`.

    Reference: Mai et al., arXiv 2306.17624.

    Example:
      >>> geo_dfs(jnp.zeros(2), np.array([1.0])).tolist()
      [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    of, scales = waves(coords, tau), len(tau)
    phi = jnp.stack([of.cos_phi, of.sin_phi], axis=-1)[..., :, None, :, None]  # [.. n 1 2 1]
    lam = jnp.stack([of.cos_lam, of.sin_lam], axis=-1)[..., None, :, None, :]  # [.. 1 m 1 2]
    pairs = (phi * lam).reshape(*of.sin_phi.shape[:-1], 4 * scales**2)
    each = by_scale(of.sin_phi, of.cos_phi), by_scale(of.sin_lam, of.cos_lam)
    return jnp.concatenate([*each, pairs], axis=-1)


class Deduplicated(MultiScale):
    """A `MultiScale` encoder that is written scale by scale, and whose released code writes every
    feature twice in a row.

    Args:
      scales, rmin, rmax: as for `MultiScale`.
      dedup: whether every feature is written once. The second column adds nothing; False gives the
        form of the released code.

    Attributes:
      per_scale: different features for each scale.
    """

    per_scale: ClassVar[int]

    def __init__(
        self, scales: int = 16, rmin: float = 1.0, rmax: float = 360.0, dedup: bool = True
    ):
        self.repeats = 1 if dedup else 2
        super().__init__(scales, rmin, rmax)

    def size(self, scales: int) -> int:
        return scales * self.per_scale * self.repeats

    def features(self, coords: Float[Array, '... 2']) -> Float[Array, '... width']:
        """The features, each of them once."""
        raise NotImplementedError

    def encode(self, coords):
        return jnp.repeat(self.features(self.check(coords)), self.repeats, axis=-1)


class PartlyScaled(Deduplicated):
    """A `Deduplicated` encoder of products of one scaled and one unscaled coordinate.

    Args:
      scales, rmin, rmax, dedup: as for `Deduplicated`.
      single_scale_unit: how the unscaled longitude and latitude become angles: 'deg_as_rad', the
        number of degrees is taken as radians, as in the released code; 'rad', they are converted,
        as in the paper.
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
        self.unit: Unit = check_choice(f'{key} single_scale_unit', single_scale_unit, UNITS)


@register(
    'geo_spherec',
    kind='coordinates',
    card=Card(
        name='sphereC',
        example='geo_spherec(scales=4)',
        use_when=(
            'You have places on the whole globe and want detail at several scales with '
            'few features.'
        ),
        share='model',
    ),
)
class GeoSphereC(Deduplicated):
    """The point of the sphere whose longitude and latitude are divided by a radius, for F radii.

    `[sin phi_k, cos phi_k cos lam_k, cos phi_k sin lam_k]` for every k, 3F features. Differs from
    the paper: the scales, see `MultiScale`. Arguments and errors are those of `Deduplicated`.

    Reference: Mai et al., arXiv 2306.17624.
    """

    per_scale = 3

    def features(self, coords):
        return geo_spherec(coords, self.tau)


@register(
    'geo_spherecplus',
    kind='coordinates',
    card=Card(
        name='sphereC+',
        example='geo_spherecplus(scales=4)',
        use_when='You use `geo_spherec` and want the waves of each coordinate beside it.',
        share='model',
    ),
)
class GeoSphereCPlus(Deduplicated):
    """The features of `geo_spherec`, and the sines and cosines of each coordinate.

    `[sin phi_k, cos phi_k, sin lam_k, cos lam_k, cos phi_k cos lam_k, cos phi_k sin lam_k]` for
    every k, 6F features. Differs from the paper: the scales, see `MultiScale`. Arguments and errors
    are those of `Deduplicated`.

    Reference: Mai et al., arXiv 2306.17624.
    """

    per_scale = 6

    def features(self, coords):
        return geo_spherecplus(coords, self.tau)


@register(
    'geo_spherem',
    kind='coordinates',
    card=Card(
        name='sphereM',
        example='geo_spherem(scales=4)',
        use_when='You have places on the whole globe and want features that mix scales.',
        share='model',
    ),
)
class GeoSphereM(PartlyScaled):
    """Points of the sphere of which one coordinate at a time is divided by a radius, for F radii.

    `[sin phi_k, cos phi_k cos lam, cos phi cos lam_k, cos phi_k sin lam, cos phi sin lam_k]` for
    every k, 5F features. Differs from the paper: the scales, see `MultiScale`; the unscaled lam and
    phi are degrees taken as radians, as in the released code. Arguments and errors are those of
    `PartlyScaled`.

    Reference: Mai et al., arXiv 2306.17624.
    """

    per_scale = 5

    def features(self, coords):
        return geo_spherem(coords, self.tau, self.unit)


@register(
    'geo_spheremplus',
    kind='coordinates',
    card=Card(
        name='sphereM+',
        example='geo_spheremplus(scales=4)',
        use_when='You use `geo_spherem` and want the waves of each coordinate beside it.',
        share='model',
    ),
)
class GeoSphereMPlus(PartlyScaled):
    """The four products of `geo_spherem`, and the sines and cosines of each coordinate.

    `[sin phi_k, cos phi_k, sin lam_k, cos lam_k, cos phi_k cos lam, cos phi cos lam_k, cos phi_k
    sin lam, cos phi sin lam_k]` for every k, 8F features. Differs from the paper: as `geo_spherem`.
    Arguments and errors are those of `PartlyScaled`.

    Reference: Mai et al., arXiv 2306.17624.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> make_features('geo_spheremplus(scales=8)').encode(jnp.zeros((5, 2))).shape
      (5, 64)
    """

    per_scale = 8

    def features(self, coords):
        return geo_spheremplus(coords, self.tau, self.unit)


@register(
    'geo_dfs',
    kind='coordinates',
    card=Card(
        name='DFS',
        example='geo_dfs(scales=3)',
        use_when='You have places on the globe, fine detail, and room for many features.',
        share='model',
    ),
)
class GeoDFS(MultiScale):
    """The double Fourier sphere: products of the waves of all pairs of scales.

    `[sin phi_n, cos phi_n; sin lam_m, cos lam_m; cos phi_n cos lam_m, cos phi_n sin lam_m, sin
    phi_n cos lam_m, sin phi_n sin lam_m]` for every n, every m and every pair, m the faster; 4F +
    4F^2 features. Differs from the paper: the scales, see `MultiScale`. The released code of arXiv
    2310.06743 does not have this encoder; the formula is the paper's. Arguments and errors are
    those of `MultiScale`.

    Reference: Mai et al., arXiv 2306.17624.
    """

    def size(self, scales: int) -> int:
        return 4 * scales**2 + 4 * scales

    def encode(self, coords):
        return geo_dfs(self.check(coords), self.tau)
