"""RECOMBINER's learnable positional encodings: a small trained grid, enlarged by convolutions,
beside Fourier features.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.coordinates.encoder import MAX_FEATURES, CoordinateEncoder
from posenc_jax.core.registry import Card, Promises, register
from posenc_jax.core.spec import CONTEXT

CELL = 16  # pixels of a cell of the grid along an axis
STAGES = ((4, 5), (2, 3), (2, 3))  # how often every cell is repeated, and the kernel that follows
FREQUENCIES = 4
MOST = 1024.0  # the highest frequency


def enlarged(
    grid: Float[Array, '*S Z'], kernels: Sequence[Array], biases: Sequence[Array]
) -> Float[Array, '*T E']:
    """The grid at 16 times its resolution: three times cells are repeated (4, 2, 2 times) and
    convolved with zeros around, with leaky units of slope 0.01 in between.

    Args:
      grid: latent vectors, for any number of axes.
      kernels: [..., I, O], 5, 3 and 3 wide.
      biases: [O], one a convolution.

    Example:
      >>> kernels = [jnp.zeros((size, 1, 1)).at[size // 2].set(1.0) for size in (5, 3, 3)]
      >>> enlarged(jnp.array([[1.0], [2.0]]), kernels, [jnp.zeros(1)] * 3)[14:18, 0].tolist()
      [1.0, 1.0, 2.0, 2.0]
    """
    axes, x = grid.ndim - 1, grid
    letters = 'XYZ'[:axes]
    for number, ((times, size), kernel, bias) in enumerate(zip(STAGES, kernels, biases)):
        for axis in range(axes):
            x = jnp.repeat(x, times, axis)
        x = jax.lax.conv_general_dilated(
            x[None],
            kernel,
            (1,) * axes,
            [(size // 2, size // 2)] * axes,
            dimension_numbers=(f'N{letters}C', f'{letters}IO', f'N{letters}C'),
            precision=jax.lax.Precision.HIGHEST,
        )[0]
        x = x + bias
        if number < len(STAGES) - 1:
            x = jnp.where(x >= 0, x, 0.01 * x)
    return x


def looked_up(values: Float[Array, '*S E'], coords: Float[Array, '... d']) -> Float[Array, '... E']:
    """Values on a grid at points between: linear along every axis, with pixel i of n at `-1 + 2 (i
    + 0.5) / n`; beyond the outermost pixels it is constant.

    Example:
      >>> looked_up(jnp.array([[0.0], [1.0]]), jnp.array([[-0.5], [0.0], [2.0]])).tolist()
      [[0.0], [0.5], [1.0]]
    """
    axes = coords.shape[-1]
    sizes = np.array(values.shape[:axes])
    place = jnp.clip((coords + 1) / 2 * sizes - 0.5, 0, sizes - 1)
    low = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, np.maximum(sizes - 2, 0))
    share = place - low
    out = jnp.zeros(())
    for corner in np.ndindex(*(2,) * axes):
        at = jnp.minimum(low + np.array(corner), sizes - 1)
        weight = jnp.prod(jnp.where(np.array(corner) == 1, share, 1 - share), axis=-1)
        out = out + weight[..., None] * values[tuple(jnp.moveaxis(at, -1, 0))]
    return out


def fourier_part(coords: Float[Array, '... d']) -> Float[Array, '... F']:
    """`[cos(pi x_j w_k) | sin(pi x_j w_k)]`, w four frequencies from 1 to 1024 in equal ratios, the
    coordinate j the slower.

    Example:
      >>> fourier_part(jnp.array([1.0])).shape
      (8,)
    """
    frequencies = jnp.exp(jnp.linspace(0.0, math.log(MOST), FREQUENCIES))
    angle = math.pi * coords[..., :, None] * frequencies
    angle = angle.reshape(*coords.shape[:-1], FREQUENCIES * coords.shape[-1])
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


@register(
    'recombiner_lpe',
    kind='coordinates',
    card=Card(
        name='RECOMBINER LPE',
        title='RECOMBINER: Robust and Enhanced Compression with Bayesian Implicit Neural '
        'Representations',
        arxiv='2309.17182',
        door='none',
        equation='[cos(pi x w) | sin(pi x w) | pe(x)], pe = conv3(up2(conv3(up2(conv5(up4(Z))))))',
        source='cambridge-mlg/RECOMBINER',
        authors='He, Jiajun and Flamich, Gergely and Guo, Zongyu and Hernandez-Lobato, Jose Miguel',
        year=2023,
        example='recombiner_lpe(shape=(32, 32), latent=8, hidden=8, features=4)',
        promises=Promises(needs_training=True),
    ),
)
class RecombinerLpe(CoordinateEncoder):
    """A trained vector for every 16 x 16 pixels of a signal, enlarged to its pixels by convolutions
    and read at the points, beside Fourier features. A network can so learn different places apart.

    `[fourier | pe]`. The grid Z has one cell for 16 pixels along every axis; cells are repeated 4,
    2 and 2 times, each time followed by a convolution (5, 3 and 3 wide). Changing a cell changes pe
    in its pixels and the 11 around them. Differs from the paper: Z is trained as it stands, where
    the paper has a distribution over it; between pixels pe is interpolated linearly.

    Args:
      shape: pixels along every axis, multiples of 16; one axis to three.
      latent: width of Z.
      hidden: channels between the convolutions.
      features: width of pe; without Fourier features.
      rngs: draws the parameters.

    Raises:
      ValueError: a shape that 16 does not divide or with more than three axes; sizes below 1.

    Reference: He et al., arXiv 2309.17182.

    Example:
      >>> from posenc_jax.coordinates import make_features
      >>> encoder = make_features('recombiner_lpe(shape=(32, 48), latent=8, hidden=8)')
      >>> encoder.encode(jnp.zeros((5, 2))).shape
      (5, 32)
    """

    def __init__(
        self,
        shape: tuple[int, ...] = (64, 64),
        latent: int = 128,
        hidden: int = 64,
        features: int = 16,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if not 1 <= len(shape) <= 3:
            raise ValueError(f'recombiner_lpe shape has one to three axes, got {shape}')
        for size in shape:
            if size < CELL or size % CELL:
                near = max(CELL, round(size / CELL) * CELL)
                raise ValueError(
                    f'recombiner_lpe shape must hold multiples of {CELL}, got {size}; nearest: '
                    f'{near}'
                )
        for name, size in (('latent', latent), ('hidden', hidden), ('features', features)):
            if not 1 <= size <= MAX_FEATURES:
                raise ValueError(
                    f'recombiner_lpe {name} must lie in 1 .. {MAX_FEATURES}, got {size}'
                )
        axes = len(shape)
        self.components, self.width = axes, 2 * axes * FREQUENCIES + features
        cells = tuple(size // CELL for size in shape)
        roles = (None,) * (axes + 1)
        drawn = 0.1 * jax.random.normal(rngs.params(), (*cells, latent))
        self.latent = nnx.Param(drawn, axes=roles)
        sizes, kernels, biases = (latent, hidden, hidden, features), [], []
        for (_, size), inputs, outputs in zip(STAGES, sizes[:-1], sizes[1:], strict=True):
            bound = (inputs * size**axes) ** -0.5
            uniform = lambda *wanted: bound * jax.random.uniform(rngs.params(), wanted, minval=-1.0)
            kernel = uniform(*(size,) * axes, inputs, outputs)
            kernels.append(nnx.Param(kernel, axes=(*roles, None)))
            biases.append(nnx.Param(uniform(outputs), axes=(None,)))
        self.kernels, self.biases = nnx.List(kernels), nnx.List(biases)

    def encoding(self) -> Float[Array, '*S E']:
        """pe at every pixel of the shape."""
        kernels, biases = ([part[...] for part in own] for own in (self.kernels, self.biases))
        return enlarged(self.latent[...], kernels, biases)

    def encode(self, coords):
        coords = self.check(coords)
        learned = looked_up(self.encoding(), coords)
        return jnp.concatenate([fourier_part(coords), learned], axis=-1)
