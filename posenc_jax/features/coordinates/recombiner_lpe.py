"""RECOMBINER's learnable positional encodings: a small trained grid, enlarged by convolutions,
beside Fourier features.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.double import Double
from posenc_jax.features.coordinates.encoder import CoordinateEncoder, Wide
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.registry import Card, register

CELL = 16  # pixels of a cell of the grid along an axis
STEP = 4  # what the two last stages repeat a cell by, together
KERNELS = (5, 3, 3)  # widths of the convolutions
FEATURES = 16  # Fourier features; 18 for three coordinates, which 16 do not divide among
MOST = 1024.0  # the highest frequency


def recombiner_lpe_enlarged(
    grid: Float[Array, '*S Z'],
    kernels: Sequence[Array],
    biases: Sequence[Array],
    cells: Sequence[int] | None = None,
) -> Float[Array, '*T E']:
    """The grid at the resolution of the pixels: three times cells are repeated (a quarter of the
    pixels of a cell, 2 and 2 times) and convolved with zeros around, with leaky units of slope 0.01
    in between.

    Args:
      grid: latent vectors, for any number of axes.
      kernels: [..., I, O], 5, 3 and 3 wide.
      biases: [O], one a convolution.
      cells: pixels of a cell along every axis, multiples of 4; None for 16.
    """
    axes, x = grid.ndim - 1, grid
    letters = 'XYZ'[:axes]
    first = [size // STEP for size in cells or (CELL,) * axes]
    for number, (size, kernel, bias) in enumerate(zip(KERNELS, kernels, biases, strict=True)):
        for axis in range(axes):
            x = jnp.repeat(x, 2 if number else first[axis], axis)
        x = jax.lax.conv_general_dilated(
            x[None],
            kernel,
            (1,) * axes,
            [(size // 2, size // 2)] * axes,
            dimension_numbers=(f'N{letters}C', f'{letters}IO', f'N{letters}C'),
            precision=jax.lax.Precision.HIGHEST,
        )[0]
        x = x + bias
        if number < len(KERNELS) - 1:
            x = jnp.where(x >= 0, x, 0.01 * x)
    return x


def recombiner_lpe_read(
    values: Float[Array, '*S E'], coords: Float[Array, '... d']
) -> Float[Array, '... E']:
    """Values on a grid at points between: linear along every axis, with pixel i of n at `-1 + 2 (i
    + 0.5) / n`; beyond the outermost pixels it is constant.
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


def recombiner_lpe_waves(coords: Float[Array, '... d'], frequencies: int) -> Float[Array, '... F']:
    """`[cos(pi x_j w_k) | sin(pi x_j w_k)]`, w frequencies from 1 to 1024 in equal ratios, the
    coordinate j the slower; 2 d K features, float32.

    The turns `x_j w_k / 2` are products of 48 bits, so every frequency is as exact as the first.

    Args:
      coords: usually in [-1, 1].
      frequencies: K, at least 1.
    """
    rates = np.exp(np.linspace(0.0, np.log(MOST), frequencies))
    turns = Double.of(coords[..., None]) * (rates / 2)
    angle = 2 * np.pi * (turns.high - jnp.round(turns.high) + turns.low)
    angle = angle.reshape(*coords.shape[:-1], frequencies * coords.shape[-1])
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


@register(
    'recombiner_lpe',
    kind='coordinates',
    card=Card(
        name='RECOMBINER LPE',
        example='recombiner_lpe(shape=(32, 32), latent=8, hidden=8, features=4)',
        use_when=(
            'You fit large signals whose places differ much; to compare with SIREN, since '
            'codes did not help in the measured claim, which is open.'
        ),
        door='none',
        needs_training=True,
    ),
)
class RecombinerLpe(CoordinateEncoder):
    """A trained vector for every 16 x 16 pixels of a signal, enlarged to its pixels by convolutions
    and read at the points, beside Fourier features. A network can so learn different places apart.

    `[cos(pi x w) | sin(pi x w) | pe(x)]`, `pe = conv3(up2(conv3(up2(conv5(up4(Z))))))`. The grid Z
    has one cell for 16 pixels along every axis; `recombiner_lpe_enlarged` has the sizes. Changing a
    cell changes pe in its pixels and the 11 around them. The released code reads videos (time, row,
    column) with `cells=(24, 16, 16)`. Differs from the paper: Z is trained as it stands, where the
    paper has a distribution over it; between pixels pe is interpolated linearly.

    Args:
      shape: pixels along every axis, multiples of those of a cell; one axis to three.
      latent: width of Z.
      hidden: channels between the convolutions.
      features: width of pe; without Fourier features.
      fourier: Fourier features, a multiple of 2 d for d axes, which have fourier / (2 d)
        frequencies each. None: 16, or 18 for three axes, so 8, 4 and 3 frequencies for one, two and
        three axes.
      cells: pixels of a cell along every axis, multiples of 4; None: 16.

    Raises:
      ValueError: a shape that the cells do not divide or with more than three axes; cells that are
        no multiples of 4 or of another number of axes; Fourier features that are no multiple of
        2 d.

    Reference: He et al., arXiv 2309.17182.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> encoder = make_features('recombiner_lpe(shape=(32, 48), latent=8, hidden=8)')
      >>> encoder.encode(jnp.zeros((5, 2))).shape
      (5, 32)
    """

    def __init__(
        self,
        shape: tuple[int, ...] = (64, 64),
        latent: Wide = 128,
        hidden: Wide = 64,
        features: Wide = 16,
        fourier: Wide | None = None,
        cells: tuple[int, ...] | None = None,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if not 1 <= len(shape) <= 3:
            raise ValueError(f'recombiner_lpe shape has one to three axes, got {shape}')
        axes = len(shape)
        cells = (CELL,) * axes if cells is None else cells
        if len(cells) != axes:
            raise ValueError(
                f'recombiner_lpe cells are a number for each of the {axes} axes of the shape, got '
                f'{cells}'
            )
        for cell, size in zip(cells, shape):
            _check_multiple('cells', cell, STEP)
            _check_multiple('shape', size, cell)
        each = 2 * axes
        if fourier is None:
            fourier = -(-FEATURES // each) * each
        _check_multiple('fourier', fourier, each)
        self.components, self.width = axes, fourier + features
        self.frequencies, self.cells = fourier // each, cells
        grid = tuple(size // cell for size, cell in zip(shape, cells))
        roles = (None,) * (axes + 1)
        drawn = 0.1 * jax.random.normal(rngs.params(), (*grid, latent))
        self.latent = nnx.Param(drawn, axes=roles)
        widths, kernels, biases = (latent, hidden, hidden, features), [], []
        for size, inputs, outputs in zip(KERNELS, widths[:-1], widths[1:], strict=True):
            bound = (inputs * size**axes) ** -0.5
            uniform = lambda *wanted: bound * jax.random.uniform(rngs.params(), wanted, minval=-1.0)
            kernel = uniform(*(size,) * axes, inputs, outputs)
            kernels.append(nnx.Param(kernel, axes=(*roles, None)))
            biases.append(nnx.Param(uniform(outputs), axes=(None,)))
        self.kernels, self.biases = nnx.List(kernels), nnx.List(biases)

    def encoding(self) -> Float[Array, '*S E']:
        """pe at every pixel of the shape."""
        kernels, biases = ([part[...] for part in own] for own in (self.kernels, self.biases))
        return recombiner_lpe_enlarged(self.latent[...], kernels, biases, self.cells)

    def encode(self, coords):
        coords = self.check(coords)
        learned = recombiner_lpe_read(self.encoding(), coords)
        return jnp.concatenate([recombiner_lpe_waves(coords, self.frequencies), learned], axis=-1)


def _check_multiple(name: str, size: int, step: int) -> None:
    if size < step or size % step:
        near = max(step, (size + (step - 1) // 2) // step * step)
        raise ValueError(
            f'recombiner_lpe {name} takes multiples of {step}, got {size}; nearest: {near}'
        )
