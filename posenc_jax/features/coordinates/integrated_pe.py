"""Integrated positional encoding: the mean of sines and cosines over a Gaussian, of mip-NeRF and
mip-NeRF 360.
"""

import itertools
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from posenc_jax.base.double import Double
from posenc_jax.features.coordinates.encoder import CoordinateEncoder, Wide, limited
from posenc_jax.features.coordinates.gaussians import contracted_gaussian
from posenc_jax.protocol.bounds import Ge, Gt, Le, NonNegative
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.registry import Card, register

MAX_DEGREE = 24  # 2^i x has no fraction of a turn left in float32 beyond
Basis = Literal['axes', 'icosahedron']
ENDS = {'axes': 16, 'icosahedron': 12}  # of the degrees


def integrated_pe_features(
    mean: Float[Array, '... d'], variance: Float[Array, '... d'], begin: int, end: int
) -> Float[Array, '... F']:
    """`[exp(-4^i v_j / 2) sin(2^i m_j) | exp(-4^i v_j / 2) cos(2^i m_j)]`, the degree i the slower,
    2 d (end - begin) features, float32.

    The turns `2^i m_j / (2 pi)` are products of 48 bits, so every degree is as exact as the first
    as long as there are no more than about 2^23 turns.

    Args:
      mean: m.
      variance: v, of every coordinate.
      begin, end: degrees i = begin .. end - 1.
    """
    degrees = np.arange(begin, end, dtype=np.float64)[:, None]
    turns = Double.of(mean[..., None, :]) * (2.0**degrees / (2 * np.pi))
    angle = 2 * np.pi * sum(part - jnp.round(part) for part in (turns.high, turns.low))
    left = jnp.exp(-0.5 * (4.0**degrees).astype(np.float32) * variance[..., None, :])
    waves = jnp.stack([left * jnp.sin(angle), left * jnp.cos(angle)], axis=-3)
    return waves.reshape(*mean.shape[:-1], 2 * (end - begin) * mean.shape[-1])


def icosahedron_directions() -> Float[np.ndarray, '21 3']:
    """The corners and the middles of the edges of an icosahedron as unit vectors, one of each pair
    of opposite ones, float64.
    """
    golden = (1 + 5**0.5) / 2
    corners = np.array(
        [
            np.roll((0.0, one, other * golden), turn)
            for turn in range(3)
            for one, other in itertools.product((1, -1), repeat=2)
        ]
    )
    apart = lambda a, b: ((corners[a] - corners[b]) ** 2).sum()
    edges = [pair for pair in itertools.combinations(range(12), 2) if apart(*pair) < 4.5]
    found = np.concatenate([corners, [corners[a] + corners[b] for a, b in edges]])
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    first = lambda v: next(x for x in v if abs(x) > 1e-9)
    return np.array([v for v in found if first(v) > 0])


@register(
    'integrated_pe',
    kind='coordinates',
    card=Card(
        name='Integrated positional encoding',
        example='integrated_pe(end=4, variance=0.01)',
        share='model',
    ),
)
class IntegratedPE(CoordinateEncoder):
    """Encodes a Gaussian in the place of a point, by the means of sines and cosines over it. Waves
    that are shorter than the Gaussian is wide vanish, so that a field can be asked for the mean
    over a pixel of any size.

    `[exp(-4^i v_j / 2) sin(2^i m_j) | exp(-4^i v_j / 2) cos(2^i m_j)]`, m the mean and v the
    variance of each coordinate, i = begin .. end - 1. All sines come first, the degree i the
    slower. There is no factor pi, and the coordinates themselves are no features. `encode` takes
    points, to which it gives the same variance along every axis, for example a twelfth of the
    squared width of a pixel; it is the array `variance`, which may be set again for pixels of
    another size. `encode_gaussians` takes means and covariances, such as those that
    `section_gaussian` of `coordinates.gaussians` has for a section of a cone.

    The basis 'axes' reads the diagonal of the covariance S. The basis 'icosahedron' has 21
    directions v_j of space instead, `m_j = v_j . m` and `v_j^T S v_j`. `contracted` first maps
    space to a ball of radius 2, and S by the Jacobian. Differs from the papers: the order and the
    signs of the 21 directions, the argument `variance`, and exact phases in the place of a sine
    whose argument is reduced by 100 pi.

    Args:
      components: d, coordinates of a point; 3 for the icosahedron.
      begin, end: degrees; end is 16 by default, and 12 for the icosahedron.
      basis: 'axes' or 'icosahedron'.
      contracted: whether space is contracted first.
      variance: of every coordinate of a point; 0 gives sines and cosines.

    Raises:
      ValueError: an icosahedron with another number of coordinates than 3.

    Reference: Barron et al., arXiv 2103.13415 and arXiv 2111.12077.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> encoder = make_features('integrated_pe(components=1, end=2, variance=0.1)')
      >>> encoder.encode(jnp.array([0.5])).round(4).tolist()
      [0.4560, 0.6889, 0.8348, 0.4424]
    """

    def __init__(
        self,
        components: Wide = 2,
        begin: Annotated[int, Ge(0), Le(MAX_DEGREE - 1)] = 0,
        end: Annotated[int, Gt('begin'), Le(MAX_DEGREE)] | None = None,
        basis: Basis = 'axes',
        contracted: bool = False,
        variance: NonNegative = 0.0,
    ):
        self.begin, self.end = begin, ENDS[basis] if end is None else end
        if self.end <= begin:
            raise ValueError(
                f'integrated_pe has end={self.end} unless it is given, got begin={begin}; '
                f'give an end above it, such as {begin + 1}'
            )
        off_axis = basis == 'icosahedron'
        if off_axis and components != 3:
            raise ValueError(
                f"integrated_pe basis='icosahedron' has directions of space, so components must "
                f"be 3, got {components}; other points have basis='axes'"
            )
        directions = jnp.asarray(icosahedron_directions(), jnp.float32) if off_axis else None
        self.directions = None if directions is None else Constant(directions, axes=(None, None))
        self.components, self.contracted = components, contracted
        count = 2 * (self.end - begin) * (21 if off_axis else components)
        self.width = limited('integrated_pe:', count)
        self.variance = Constant(jnp.asarray(variance, jnp.float32), axes=())

    def encode_gaussians(
        self, mean: Float[Array, '... d'], covariance: Float[Array, '... d d']
    ) -> Float[Array, '... F']:
        """The features of Gaussians.

        Args:
          mean: points.
          covariance: symmetric matrices.

        Raises:
          ValueError: means that are no points of `components` finite coordinates, or covariances
            of another shape.
        """
        mean = self.check(mean)
        if covariance.shape[-2:] != (self.components,) * 2:
            raise ValueError(
                f'integrated_pe takes covariances [..., {self.components}, {self.components}], got '
                f'{covariance.shape}'
            )
        if self.contracted:
            mean, covariance = contracted_gaussian(mean, covariance)
        variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        if self.directions is not None:
            v, exact = self.directions[...], 'highest'
            mean = jnp.einsum('...d,jd->...j', mean, v, precision=exact)
            variance = jnp.einsum('jd,...de,je->...j', v, covariance, v, precision=exact)
        return integrated_pe_features(mean, variance, self.begin, self.end)

    def encode(self, coords):
        coords, variance = self.check(coords), self.variance[...]
        if self.contracted or self.directions is not None:
            return self.encode_gaussians(coords, variance * jnp.eye(self.components))
        return integrated_pe_features(
            coords, jnp.broadcast_to(variance, coords.shape), self.begin, self.end
        )
