"""The position information that the padding of convolutions writes into their output."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from posenc_jax.base.convolution import check_kernel
from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.files import disk
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import register

# Padding schemes, and what numpy calls them; 'none' does not pad.
PADDINGS = {'zeros': 'constant', 'reflect': 'reflect', 'replicate': 'edge', 'circular': 'wrap'}
Scheme = Literal['zeros', 'reflect', 'replicate', 'circular', 'none']


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution with an odd kernel and a relu behind it, or nothing.

    Attributes:
      kernel: weights, cross-correlated.
      bias: added to each channel, or None.
      stride: of rows and columns.
      relu: whether a relu follows.

    Raises:
      ValueError: a kernel that is not square, or whose side is even.
    """

    kernel: Float[Array, 'k k C O']
    bias: Float[Array, 'O'] | None = None
    stride: int = 1
    relu: bool = True

    def __post_init__(self):
        rows, columns = self.kernel.shape[:2]
        if rows != columns:
            raise ValueError(f'Convolution kernel must be square, got {rows} x {columns}')
        check_kernel('Convolution', rows)


def run_stack(
    x: Float[Array, 'B rows columns C'], stack: Sequence[Convolution], padding: Scheme
) -> Float[Array, 'B _ _ O']:
    """The output of convolutions, each of which pads its input by (k - 1) / 2 on all sides.

    Raises:
      SpecError: an unknown padding.
    """
    check_choice('padding', padding, (*PADDINGS, 'none'))
    for layer in stack:
        reach = layer.kernel.shape[0] // 2
        if padding != 'none':
            sides = ((0, 0), (reach, reach), (reach, reach), (0, 0))
            x = jnp.pad(x, sides, mode=PADDINGS[padding])
        x = jax.lax.conv_general_dilated(
            x,
            layer.kernel.astype(x.dtype),
            (layer.stride, layer.stride),
            'VALID',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )
        x = x if layer.bias is None else x + layer.bias.astype(x.dtype)
        x = jax.nn.relu(x) if layer.relu else x
    return x


def margin(stack: Sequence[Convolution]) -> int:
    """m, how many pixels of context on each side the convolutions need in the place of padding."""
    scale, total = 1, 0
    for layer in stack:
        total += scale * (layer.kernel.shape[0] // 2)
        scale *= layer.stride
    return total


@dataclasses.dataclass(frozen=True)
class PaddingPattern:
    """What padding adds to the output of a stack, measured on n images.

    Attributes:
      pattern: PPP, the mean over the images of what padding adds.
      mae: the mean of its absolute value over images, places and channels.
      snr: the mean over places and channels of PPP^2 / (variance over the images + 1e-8).
    """

    pattern: Float[np.ndarray, 'rows columns O']
    mae: float
    snr: float

    @property
    def shown(self) -> Float[np.ndarray, 'rows columns']:
        """The mean over the channels of |PPP|."""
        return np.abs(self.pattern).mean(-1)

    @property
    def by_distance(self) -> Float[np.ndarray, ' D']:
        """The mean of `shown` over the places at each distance from the border, from 0 on."""
        rows, columns = self.shown.shape
        from_side = lambda n: np.minimum(np.arange(n), np.arange(n)[::-1])
        distance = np.minimum(from_side(rows)[:, None], from_side(columns))
        of = lambda d: self.shown[distance == d].mean()
        return np.array([of(d) for d in range(distance.max() + 1)])


@register(
    'ppp_padding',
    kind='analysis',
    card=analysis_card(
        'PPP',
        "padding_pattern(images, stack, 'zeros')",
        (
            'You have convolutions and want to know what their padding tells of places; '
            'the measured claim is open.'
        ),
    ),
)
def padding_pattern(
    images: Float[Array, 'n rows columns C'], stack: Sequence[Convolution], padding: Scheme
) -> PaddingPattern:
    """The pattern that a padding scheme writes into the output of convolutions.

    `d_i = f_padded(crop x_i) - f_context(x_i); PPP = mean_i d_i; SNR = mean PPP^2 / (Var_i d_i +
    1e-8)`. The images are larger than the crop by m = `margin(stack)` pixels on each side. d_i is
    the output for the padded crop less the output for the whole image without padding, on the same
    grid. PPP is what all images have in common, `MAE = mean |d_i|`, and SNR, with the population
    variance, tells a pattern of the place from what padding makes of the single images.

    Differs from the paper, which has no public code: the definitions of MAE and SNR are ours, so
    their numbers are not those of the paper.

    Args:
      images: at least two, of the crop with its context.
      stack: the convolutions.
      padding: 'zeros', 'reflect', 'replicate' or 'circular'.

    Raises:
      SpecError: an unknown padding.
      ValueError: one image, or images that have no crop inside their context.

    Reference: Lin et al., arXiv 2206.01202.

    Example:
      >>> images = jax.random.normal(jax.random.key(0), (4, 6, 6, 1))
      >>> found = padding_pattern(images, [Convolution(jnp.ones((3, 3, 1, 1)))], 'zeros')
      >>> found.pattern.shape, float(found.shown[1:3, 1:3].max())
      ((4, 4, 1), 0.0)
    """
    check_choice('padding', padding, PADDINGS)
    m, (rows, columns) = margin(stack), images.shape[1:3]
    if len(images) < 2 or min(rows, columns) <= 2 * m:
        raise ValueError(
            f'the stack needs at least two images with {m} pixels of context around a crop, got '
            f'{len(images)} of {rows} x {columns}'
        )
    crop = images[:, m : rows - m, m : columns - m]
    d = run_stack(crop, stack, padding) - run_stack(images, stack, 'none')
    d = np.asarray(d, np.float64)
    pattern = d.mean(0)
    return PaddingPattern(
        pattern, float(np.abs(d).mean()), float((pattern**2 / (d.var(0) + 1e-8)).mean())
    )


def pattern_plot(found: dict[str, PaddingPattern], path: str | pathlib.Path) -> pathlib.Path:
    """Draws |PPP| of each padding, and its mean by the distance from the border. Needs matplotlib.

    Returns:
      The path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 * (len(found) + 1.4), 2.6), layout='constrained')
    axes = figure.subplots(1, len(found) + 1, squeeze=False)[0]
    largest = max(pattern.shown.max() for pattern in found.values()) or 1.0
    for axis, (name, pattern) in zip(axes, found.items()):
        shown = axis.imshow(pattern.shown, vmin=0, vmax=largest, cmap='viridis')
        axis.set_title(f'{name}: SNR {pattern.snr:.2f}', fontsize=9)
        axis.set(xticks=[], yticks=[])
        axes[-1].plot(pattern.by_distance, label=name)
    figure.colorbar(shown, ax=list(axes[:-1]), shrink=0.8)
    axes[-1].set(xlabel='distance from the border', ylabel='mean |PPP|')
    axes[-1].legend(frameon=False, fontsize=7)
    disk.save_figure(figure, path, dpi=120)
    return pathlib.Path(path)
