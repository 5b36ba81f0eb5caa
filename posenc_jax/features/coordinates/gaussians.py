"""Gaussians in space: those of sections of a cone around a ray, and the contraction of all space to
a ball of radius 2, which maps a Gaussian by its Jacobian.
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from posenc_jax.protocol.errors import check_choice

Section = Literal['cone', 'cylinder']


def section_moments(
    begin: Float[Array, '...'],
    end: Float[Array, '...'],
    radius: Float[Array, '...'] | float,
    section: Section = 'cone',
) -> tuple[Float[Array, '...'], Float[Array, '...'], Float[Array, '...']]:
    """Mean and variance along a ray, and variance across it, of the points of a section t0 .. t1.

    With `mu = (t0 + t1) / 2`, `w = (t1 - t0) / 2` and `n = 3 mu^2 + w^2`, a cone has the mean
    `mu + 2 mu w^2 / n`, the variances `w^2 / 3 - 4 w^4 (12 mu^2 - w^2) / (15 n^2)` along and
    `rho^2 (mu^2 / 4 + 5 w^2 / 12 - 4 w^4 / (15 n))` across. A cylinder has mu, `w^2 / 3` and
    `rho^2 / 4`.

    Args:
      begin, end: t0 and t1, 0 <= t0 < t1, in lengths of the direction of the ray.
      radius: rho, of a cone at t = 1.
      section: 'cone' or 'cylinder'.

    Raises:
      SpecError: another section.
    """
    check_choice('section_moments section', section, get_args(Section))
    mu, w = (begin + end) / 2, (end - begin) / 2
    if section == 'cylinder':
        return mu, w**2 / 3, jnp.broadcast_to(jnp.square(radius) / 4, mu.shape)
    n = 3 * mu**2 + w**2
    along = w**2 / 3 - 4 / 15 * w**4 * (12 * mu**2 - w**2) / n**2
    across = mu**2 / 4 + 5 / 12 * w**2 - 4 / 15 * w**4 / n
    return mu + 2 * mu * w**2 / n, along, jnp.square(radius) * across


def section_gaussian(
    origin: Float[Array, '... d'],
    direction: Float[Array, '... d'],
    begin: Float[Array, '...'],
    end: Float[Array, '...'],
    radius: Float[Array, '...'] | float,
    section: Section = 'cone',
) -> tuple[Float[Array, '... d'], Float[Array, '... d d']]:
    """Mean `o + t d` and covariance `v d d^T + r (I - d d^T / |d|^2)` of the points of a section,
    whose moments are t, v and r.

    Args:
      origin, direction: o and d, of the ray; the direction is not 0.
      begin, end, radius, section: see `section_moments`.
    """
    mean, along, across = (a[..., None] for a in section_moments(begin, end, radius, section))
    outer = direction[..., :, None] * direction[..., None, :]
    length = (direction**2).sum(-1)[..., None, None]
    off = jnp.eye(direction.shape[-1]) - outer / length
    return origin + mean * direction, along[..., None] * outer + across[..., None] * off


def _radius(x: Float[Array, '... d']) -> Float[Array, '... 1']:
    """|x|, and 1 inside the unit ball, where the contraction is the identity."""
    return jnp.sqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1.0))


def contracted_points(x: Float[Array, '... d']) -> Float[Array, '... d']:
    """`x` in the unit ball and `(2 - 1/|x|) x / |x|` outside, which lies in the ball of radius 2.

    Example:
      >>> contracted_points(jnp.array([[0.5, 0.0], [2.0, 0.0]])).tolist()
      [[0.5, 0.0], [1.5, 0.0]]
    """
    r = _radius(x)
    return (2 - 1 / r) * x / r


def contracted_gaussian(
    mean: Float[Array, '... d'], covariance: Float[Array, '... d d']
) -> tuple[Float[Array, '... d'], Float[Array, '... d d']]:
    """`(c(m), J S J^T)`, J the Jacobian of the contraction at the mean m: `J = g I + g' m m^T / r`
    with `r = |m|`, `g = 2/r - 1/r^2`. It is continuous at r = 1, where `g' = 2/r^3 - 2/r^2` is 0.
    """
    r = _radius(mean)
    slope = (2 / r**3 - 2 / r**2) / r
    outer = mean[..., :, None] * mean[..., None, :]
    own = (2 / r - 1 / r**2)[..., None] * jnp.eye(mean.shape[-1]) + slope[..., None] * outer
    return contracted_points(mean), jnp.einsum(
        '...ij,...jk,...lk->...il', own, covariance, own, precision='highest'
    )


def expanded_points(z: Float[Array, '... d']) -> Float[Array, '... d']:
    """The inverse of the contraction, `z / (2|z| - |z|^2)` outside the unit ball; NaN beyond the
    ball of radius 2, which no point is mapped to.
    """
    r = _radius(z)
    return jnp.where(r < 2, z / (2 * r - r**2), jnp.nan)
