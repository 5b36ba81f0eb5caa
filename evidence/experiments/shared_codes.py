"""Fields of sixteen pictures that share the network of their codes, and pictures without codes.

Data:      sixteen squares of 96 x 96 pixels from two photographs in gray, which a seed draws
Measured:  the mean PSNR of all pixels, after 600 steps that read 1024 pixels of each picture. Each
           picture has a SIREN of its own, which reads
             recombiner_lpe  16 waves of the coordinates, and 8 codes that convolutions make of a
                             trained grid of the picture; the pictures share the convolutions
             waves           the coordinates and 16 waves of four octaves
             siren           the coordinates
Sizes:     1209, 1223 and 1197 numbers a picture, with a sixteenth of the convolutions
Paper:     He et al. (arXiv 2309.17182): learned codes of positions adapt to local details. The
           network that makes them is learned for a data set, and sent with no picture.
Every variant is trained at three rates, which are the places x of the table.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from evidence.experiments.field_fits import decibels, field
from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.tasks.field_task import grid_points
from posenc_jax.lab.tasks.pictures.picture import Picture, pixel_centres

PICTURES, SIDE, POINTS = 16, 96, 1024
RATES = 1e-3, 3e-3, 1e-2
VARIANTS = {
    'recombiner_lpe': (
        f'recombiner_lpe(shape=({SIDE}, {SIDE}), latent=4, hidden=8, features=8)',
        'siren(width=20, layers=2)',
    ),
    'waves': ("fourier_features('nerf', bands=4)", 'siren(width=26, layers=2)'),
    'siren': ('', 'siren(width=23, layers=3)'),
}
SHARED = {'kernels', 'biases'}  # of the convolutions


def squares(seed: int) -> Float[np.ndarray, 'P N']:
    """The values of the pixels of all pictures, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    photographs = [Picture(name, gray=True).pixels[..., 0] for name in ('china', 'flower')]
    drawn = []
    for number in range(PICTURES):
        whole = photographs[number % 2]
        row, column = rng.integers(0, len(whole) - SIDE, 2)
        drawn.append(whole[row : row + SIDE, column : column + SIDE].ravel())
    return 2 * np.stack(drawn) - 1


def is_shared(path: tuple[Any, ...], _: object) -> bool:
    """Whether a variable belongs to the convolutions."""
    return path[0] == 'features' and path[1] in SHARED


def numbers(variant: str) -> float:
    """The trained numbers of a picture, with its share of what all pictures use."""
    model = field(2, *VARIANTS[variant], 0)
    _, shared, own, _ = nnx.split(model, is_shared, nnx.Param, ...)
    count = lambda state: sum(leaf.size for leaf in jax.tree.leaves(state))
    return count(own) + count(shared) / PICTURES


def fit(variant: str, rate: float, steps: int, seed: int) -> float:
    """The mean PSNR of the pictures."""
    values = jnp.asarray(squares(seed), jnp.float32)
    coords = jnp.asarray(grid_points(*[pixel_centres(SIDE)] * 2), jnp.float32)
    drawn = [field(2, *VARIANTS[variant], PICTURES * seed + n) for n in range(PICTURES)]
    parts = [nnx.split(model, is_shared, nnx.Param, ...) for model in drawn]
    graphdef, shared, _, rest = parts[0]
    own = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(part[2] for part in parts))
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps, 0.05))

    def squared(params, at: Array) -> Float[Array, 'P n']:
        read = lambda own, at, values: (
            nnx.merge(graphdef, params['shared'], own, rest)(coords[at])[:, 0] - values[at]
        )
        return jnp.square(jax.vmap(read)(params['own'], at, values))

    @jax.jit
    def step(params, state, at):
        grads = jax.grad(lambda p: squared(p, at).mean(1).sum())(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    rng, params = np.random.default_rng([seed, 1]), {'shared': shared, 'own': own}
    state = optimizer.init(params)
    for _ in range(steps):
        at = rng.integers(0, len(coords), (PICTURES, POINTS))
        params, state = step(params, state, jnp.asarray(at))
    every = jnp.broadcast_to(jnp.arange(len(coords)), (PICTURES, len(coords)))
    return float(jax.vmap(decibels)(jax.jit(squared)(params, every)).mean())


def measured(variant: str, seed: int, options: argparse.Namespace) -> Found:
    for rate in RATES:
        yield 'pictures', variant, rate, fit(variant, rate, options.steps, seed)


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'variants'),
    choose={'variants': VARIANTS},
    options={'steps': 600},
    table={'title': 'Shared codes', 'x': 'rate', 'value': 'PSNR in dB'},
)
