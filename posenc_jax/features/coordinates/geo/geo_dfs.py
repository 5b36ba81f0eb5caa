"""The double Fourier sphere: products of all pairs of scales (Sphere2Vec-DFS)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.features.coordinates.geo.multi_scale import MultiScale, by_scale, waves
from posenc_jax.protocol.registry import Card, register


def dfs(coords: Num[Array, '... 2'], tau: Float[np.ndarray, 'F']) -> Float[Array, '... width']:
    """`[sin phi_n, cos phi_n]` for every n, `[sin lam_m, cos lam_m]` for every m, and `[cos phi_n
    cos lam_m, cos phi_n sin lam_m, sin phi_n cos lam_m, sin phi_n sin lam_m]` for every pair, m the
    faster; 4F + 4F^2 features, float32.

    Args:
      coords: (longitude, latitude) in degrees.
      tau: radii in degrees.
    """
    of = waves(coords, tau)
    phi = jnp.stack([of.cos_phi, of.sin_phi], axis=-1)[..., :, None, :, None]  # [.. n 1 2 1]
    lam = jnp.stack([of.cos_lam, of.sin_lam], axis=-1)[..., None, :, None, :]  # [.. 1 m 1 2]
    return jnp.concatenate(
        [
            by_scale(of.sin_phi, of.cos_phi),
            by_scale(of.sin_lam, of.cos_lam),
            (phi * lam).reshape(*coords.shape[:-1], 4 * len(tau) ** 2),
        ],
        axis=-1,
    )


@register(
    'geo_dfs',
    kind='coordinates',
    card=Card(
        name='DFS',
        title='Sphere2Vec: A General-Purpose Location Representation Learning over a '
        'Spherical Surface for Large-Scale Geospatial Predictions',
        arxiv='2306.17624',
        door='embed',
        equation='[sin phi_n, cos phi_n; sin lam_m, cos lam_m; cos phi_n cos lam_m, cos phi_n '
        'sin lam_m, sin phi_n cos lam_m, sin phi_n sin lam_m for all n, m]',
        source='MarcCoru/locationencoder',
        authors='Mai, Gengchen and Xuan, Yao and Zuo, Wenyun and He, Yutong and Song, Jiaming '
        'and Ermon, Stefano and Janowicz, Krzysztof and Lao, Ni',
        year=2023,
        example='geo_dfs(scales=3)',
        share='model',
    ),
)
class GeoDFS(MultiScale):
    """The double Fourier sphere: products of the waves of all pairs of scales.

    `tau_k = rmin (rmax / rmin)^(k / (F - 1))`, `lam_m = lon / tau_m`, `phi_n = lat / tau_n`; the
    features are those of `dfs`, 4F^2 + 4F in all. Differs from the paper: degrees are divided by a
    radius and taken as radians, as in the other encoders of several scales. The released code of
    arXiv 2310.06743 does not have this encoder; the formula is the paper's.

    Args:
      scales: F, the number of radii.
      rmin, rmax: the smallest and the largest radius, in degrees.

    Raises:
      ValueError: no scale, more than 2^20 features, an rmin below 1e-6, an rmax below rmin;
        at call, coordinates that are not (longitude, latitude) in degrees.

    Reference: Mai et al., arXiv 2306.17624.

    Example:
      >>> import jax.numpy as jnp
      >>> from posenc_jax.features.coordinates import make_features
      >>> encoder = make_features('geo_dfs(scales=8)')
      >>> encoder.encode(jnp.zeros((5, 2))).shape
      (5, 288)
    """

    def size(self, scales: int) -> int:
        return 4 * scales**2 + 4 * scales

    def encode(self, coords):
        return dfs(self.check(coords), self.tau)
