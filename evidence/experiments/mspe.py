"""A small convolutional generator whose grid is shifted: does what it draws move along?

Time:      6 minutes on one of two busy cores
Number:    moved at 4 pixels, seeds 0 to 2: 'mspe' .04 (-.46 to .33), 'constant' -.04 (-.60 to
           .87); see claim C16
The generator draws a blob in the middle of 32 x 32 pixels, of the height and the two radii that it
reads, in four resolutions from 4 x 4 on. It is trained to draw exactly these blobs, by their mean
squared error; this stands for the adversarial training of the paper, and leaves no doubt about what
it should draw. 'constant' begins with a trained grid, 'mspe' with the encoding, which it adds at
every resolution. Both pad their convolutions with zeros ('_circular': with the other side). Then
the grid is shifted, which no training has shown. WORKDIR/results.csv has how far the centre of mass
of the blob moves, as a share of the shift, and the error of the picture, as a share of the error of
a blob that stays where it was. WORKDIR/pictures.png shows a blob at every shift.
Paper:     Choi et al. (arXiv 2108.01285): with zero padding a generator knows its places and biases
           what it draws by them; with the encoding, samples follow a shifted grid.
"""

import argparse
import functools
import pathlib
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.program import Program, Row
from evidence.experiments.runs import full_disk_in_one_line
from posenc_jax.features.coordinates.mspe import MultiScalePositions, shifted_constant
from posenc_jax.lab.files import disk

SIDE, CHANNELS, LEVELS, BATCH = 32, 16, 3, 32
SHIFTS = (0, 2, 4, 6)  # pixels, down and to the right
VARIANTS: dict[str, dict[str, bool]] = {
    'constant': dict(explicit=False, circular=False),
    'mspe': dict(explicit=True, circular=False),
    'constant_circular': dict(explicit=False, circular=True),
    'mspe_circular': dict(explicit=True, circular=True),
}


def blobs(factors: jax.Array, shift: tuple[float, float] = (0.0, 0.0)) -> jax.Array:
    """Blobs [B, SIDE, SIDE] in the middle, or beside it.

    Args:
      factors: height and the radii along rows and columns, [B, 3], each in -1 .. 1.
      shift: down and to the right.
    """
    height, radii = 1 + 0.3 * factors[:, :1, None], 3 + factors[:, 1:]
    away = [jnp.arange(SIDE) - (SIDE - 1) / 2 - by for by in shift]
    rows, columns = (
        jnp.exp(-0.5 * (place / radii[:, axis, None]) ** 2) for axis, place in enumerate(away)
    )
    return height * rows[:, :, None] * columns[:, None]


class Generator(nnx.Module):
    """Draws images [B, SIDE, SIDE] from factors [B, 3].

    At each resolution a convolution is followed by the positions, if there are any, a scale and an
    offset of each channel from the factors, and a leaky rectifier; in between, every cell becomes
    four.
    """

    def __init__(self, explicit: bool, circular: bool, rngs: nnx.Rngs):
        padding = 'CIRCULAR' if circular else 'SAME'
        convolution = functools.partial(
            nnx.Conv, CHANNELS, kernel_size=(3, 3), padding=padding, rngs=rngs
        )
        first = SIDE >> LEVELS
        self.positions = MultiScalePositions(LEVELS) if explicit else None
        self.constant = (
            None
            if explicit
            else nnx.Param(jax.random.normal(rngs.params(), (first, first, CHANNELS)))
        )
        self.layers = nnx.List([convolution(CHANNELS) for _ in range(LEVELS + 1)])
        self.styles = nnx.List([nnx.Linear(3, 2 * CHANNELS, rngs=rngs) for _ in range(LEVELS + 1)])
        self.out = nnx.Linear(CHANNELS, 1, rngs=rngs)

    def __call__(self, factors: jax.Array, shift=(0.0, 0.0)) -> jax.Array:
        first, full = SIDE >> LEVELS, (SIDE, SIDE)
        if self.positions is None:
            x = shifted_constant(self.constant[...], tuple(by * first / SIDE for by in shift))
        else:
            x = self.positions.first(first, first, CHANNELS, shift, full)
        x = jnp.broadcast_to(x, (len(factors), *x.shape))
        for level, (layer, style) in enumerate(zip(self.layers, self.styles)):
            if level:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = layer(x)
            if level and self.positions is not None:
                x = self.positions(x, level - 1, shift, full)
            scale, offset = jnp.split(style(factors)[:, None, None], 2, axis=-1)
            x = jax.nn.leaky_relu((1 + scale) * x + offset, 0.2)
        return self.out(x)[..., 0]


def trained(variant: Mapping[str, bool], seed: int, steps: int) -> tuple[Generator, float]:
    """A generator after `steps` batches, and the error of the last one."""
    graphdef, params, rest = nnx.split(Generator(**variant, rngs=nnx.Rngs(seed)), nnx.Param, ...)
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps, 0.05))

    @jax.jit
    def step(params, state, factors):
        loss = lambda p: jnp.square(nnx.merge(graphdef, p, rest)(factors) - blobs(factors)).mean()
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, rng, value = optimizer.init(params), np.random.default_rng([seed, 1]), jnp.inf
    for _ in range(steps):
        factors = rng.uniform(-1, 1, (BATCH, 3)).astype(np.float32)
        params, state, value = step(params, state, factors)
    return nnx.merge(graphdef, params, rest), float(value)


def centre(images: jax.Array) -> np.ndarray:
    """The centre of mass of what is brighter than a tenth, [B, 2]."""
    mass = np.where(np.asarray(images) > 0.1, np.asarray(images), 0.0)
    places = np.stack(np.indices((SIDE, SIDE)), axis=-1)
    total = np.maximum(mass.sum((1, 2)), 1e-9)
    return np.einsum('brc,rcd->bd', mass, places) / total[:, None]


def measured(
    generator: Generator, factors: jax.Array
) -> dict[int, tuple[float, float, np.ndarray]]:
    """Shift -> the share of it by which centres move (at 0, how far they are from the middle, in
    pixels), the relative error, and a picture.
    """
    draw = nnx.jit(lambda generator, shift: generator(factors, (shift, shift)))
    still, found = centre(draw(generator, 0.0)), {}
    for shift in SHIFTS:
        images, right = draw(generator, float(shift)), blobs(factors, (shift, shift))
        moved = centre(images) - (still if shift else (SIDE - 1) / 2)
        apart = jnp.square(blobs(factors) - right).mean() if shift else jnp.square(right).mean()
        error = float(jnp.square(images - right).mean() / apart)
        found[shift] = float(moved.mean()) / max(shift, 1), error, np.asarray(images[0])
    return found


@full_disk_in_one_line()
def draw_pictures(pictures: Mapping[str, list[np.ndarray]], path: pathlib.Path) -> None:
    """A row for each variant, a column for each shift."""
    from matplotlib.figure import Figure

    size = len(pictures), len(SHIFTS)
    figure = Figure(figsize=(1.6 * size[1] + 1.2, 1.7 * size[0]), layout='constrained')
    axes = figure.subplots(*size, squeeze=False)
    for row, (name, images) in zip(axes, pictures.items()):
        for axis, shift, image in zip(row, SHIFTS, images):
            axis.imshow(image, vmin=0, vmax=1.3, cmap='viridis')
            middle = (SIDE - 1) / 2 + shift
            axis.plot(middle, middle, '+', color='w')  # where the middle should be
            axis.set(xticks=[], yticks=[])
            if row is axes[0]:
                axis.set_title(f'shift {shift}', fontsize=8)
        row[0].set_ylabel(name, fontsize=8)
    disk.save_figure(figure, path, dpi=160)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The numbers of all generators. Draws images of the first seed."""
    factors = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (128, 3)), jnp.float32)
    pictures = {}
    for name, variant in VARIANTS.items():
        for seed in options.seeds:
            generator, error = trained(variant, seed, options.steps)
            for shift, (share, relative, image) in measured(generator, factors).items():
                yield 'error', name, shift, seed, relative
                if shift:
                    yield 'movement', name, shift, seed, share
                if seed == options.seeds[0]:
                    pictures.setdefault(name, []).append(image)
            print(f'{name}, seed {seed}: error of training {error:.2g}', flush=True)
    draw_pictures(pictures, options.workdir / 'pictures.png')


PROGRAM = Program(
    __name__,
    __doc__,
    rows,
    options={'steps': 1500},
    table={'title': 'A shifted grid', 'x': 'shift in pixels', 'value': 'share'},
)
