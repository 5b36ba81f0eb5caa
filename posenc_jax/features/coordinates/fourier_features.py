"""Fourier features of coordinates: the bands of NeRF, or waves of random frequencies."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.features.coordinates.encoder import CoordinateEncoder, Wide, limited
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.bounds import Ge, Le, Multiple, Positive
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.registry import Card, register

Kind = Literal['nerf', 'random']
MAX_BANDS = 127  # 2^127 is the largest power of two in float32


def fourier_features_nerf(x: Num[Array, '... d'], bands: int) -> Float[Array, '... F']:
    """`[x, then for band i = 0 .. K - 1, for coordinate j: sin(2^i pi x_j), cos(2^i pi x_j)]`, d +
    2 d K features, float32.

    The turns `2^i x_j / 2` are exact in float32, so every band is as exact as the first.

    Args:
      x: coordinates, usually in [-1, 1]; all but the first d features have the period 2.
      bands: K, 0 to 127.

    Raises:
      ValueError: another number of bands.

    Reference: Mildenhall et al., arXiv 2003.08934.

    Example:
      >>> fourier_features_nerf(jnp.array([0.5]), 2).round(4).tolist()
      [0.5, 1.0, 0.0, 0.0, -1.0]
    """
    if not 0 <= bands <= MAX_BANDS:
        raise ValueError(f'fourier_features_nerf takes 0 .. {MAX_BANDS} bands, got {bands}')
    x = x.astype(jnp.float32)
    turns = x[..., None, :] * 2.0 ** jnp.arange(-1, bands - 1, dtype=jnp.float32)[:, None]
    angle = 2 * jnp.pi * (turns - jnp.round(turns))
    waves = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    waves = waves.reshape(*x.shape[:-1], 2 * bands * x.shape[-1])
    return jnp.concatenate([x, waves], axis=-1)


def fourier_features_bands(samples: int) -> int:
    """`floor(log2(n / 4))`, at least 0: the bands whose waves n samples along the shorter side of a
    signal on [-1, 1] resolve.

    Raises:
      ValueError: fewer than one sample.
    """
    if samples < 1:
        raise ValueError(f'fourier_features_bands needs at least 1 sample, got {samples}')
    return max(samples.bit_length() - 3, 0)


def fourier_features_random(
    x: Num[Array, '... d'], b: Float[Array, 'd m']
) -> Float[Array, '... F']:
    """`[cos(2 pi x B) | sin(2 pi x B)]`, F = 2m, float32.

    Args:
      x: coordinates.
      b: B, frequencies in turns per unit.

    Reference: Tancik et al., arXiv 2006.10739.

    Example:
      >>> fourier_features_random(jnp.array([0.25]), jnp.array([[1.0, 2.0]])).round(4).tolist()
      [0.0, -1.0, 1.0, 0.0]
    """
    turns = jnp.matmul(x.astype(jnp.float32), b, precision=jax.lax.Precision.HIGHEST)
    angle = 2 * jnp.pi * (turns - jnp.round(turns))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


@register(
    'fourier_features',
    kind='coordinates',
    card=Card(
        name='Fourier features',
        example='fourier_features(bands=3)',
        use_when='You fit a field with a plain network that comes out too smooth.',
        share='model',
    ),
)
class FourierFeatures(CoordinateEncoder):
    """Encodes coordinates by waves whose frequencies are powers of two, or random.

    `[x, sin(2^i pi x_j), cos(2^i pi x_j)]` and `[cos(2 pi x B) | sin(2 pi x B)]` are the kinds
    'nerf' and 'random'. The bands i < K are the slower and the coordinates j the faster: d + 2 d K
    features of x in [-1, 1]; `fourier_features_bands` chooses K for a signal of n samples. B [d, m]
    is drawn once from N(0, s^2) and not trained. The inner product of two random codes over m
    approximates `exp(-2 pi^2 s^2 |x - y|^2)`. Differs from the papers: nothing.

    Args:
      kind: 'nerf' or 'random'.
      components: d, coordinates of a point.
      bands: K of 'nerf'; 10 by default, the number for points in space.
      features: 2m of 'random'; 256 by default.
      scale: s of 'random', in turns per unit; 10 by default, the papers' for images.

    Raises:
      ValueError: an argument of the other kind, more than 2^20 features.

    Reference: Tancik et al., arXiv 2006.10739; Mildenhall et al., arXiv 2003.08934.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> make_features('fourier_features(bands=4)').encode(jnp.zeros((5, 2))).shape
      (5, 18)
    """

    def __init__(
        self,
        kind: Kind = 'nerf',
        components: Wide = 2,
        bands: Annotated[int, Ge(0), Le(MAX_BANDS)] | None = None,
        features: Annotated[int, Ge(2), Multiple(2)] | None = None,
        scale: Positive | None = None,
        rngs: nnx.Rngs = CONTEXT,
    ):
        foreign = {'features': features, 'scale': scale} if kind == 'nerf' else {'bands': bands}
        for name, value in foreign.items():
            if value is not None:
                raise ValueError(
                    f'fourier_features of kind {kind!r} has no {name}, got {value}; it takes '
                    f'{"bands" if kind == "nerf" else "features and scale"}'
                )
        self.kind, self.components = kind, components
        self.bands = 10 if bands is None else bands
        features = 256 if features is None else features
        width = components * (1 + 2 * self.bands) if kind == 'nerf' else features
        self.width = limited('fourier_features:', width)
        if kind == 'random':
            scale = 10.0 if scale is None else scale
            waves = (components, features // 2)
            b = scale * jax.random.normal(rngs.params(), waves, jnp.float32)
            self.b = Constant(b, axes=(None, None))

    def encode(self, coords):
        coords = self.check(coords)
        if self.kind == 'nerf':
            return fourier_features_nerf(coords, self.bands)
        return fourier_features_random(coords, self.b[...])
