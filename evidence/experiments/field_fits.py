"""Fields of volumes, of a noisy picture, and of patches whose places are learned with them.

Groups:    volumes    32 x 32 x 32 values by a linear layer of 4 trained features: sums of functions
                      of two coordinates by the sum of three planes of 32 x 32, and by a grid of
                      space of as many numbers; products of three functions of one coordinate by the
                      product of three planes, and by their sum; PSNR after 800 steps
           noise      64 x 64 pixels with noise of 20 dB, by `wire` and by `siren` with two factors
                      of the first layer; the best PSNR against the picture without noise along the
                      training
           alignment  five patches of a picture on [-1, 1], each moved by up to .2 along both axes,
                      of which the first is known and the others are learned together with a field
                      of eight bands, by `barf` with its window and with all waves from the start;
                      the median distance of a learned place to the true one
Time:      3 to 15 s of processor time a run; a seed draws the signals and the first weights
Number:    docs/claims.md, claims FF2, FF4 and FF6
Every variant is trained at two rates, which are the places x of the table.
Paper:     Chan et al. (arXiv 2112.07945): planes hold a volume with the square of its side.
           Saragadam et al. (arXiv 2301.05187): `wire` removes noise better than `siren`. Lin et al.
           (arXiv 2104.06405): waves that come in from coarse to fine let positions be learned.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.model.field import Field, FieldConfig
from posenc_jax.lab.model.losses import PEAK
from posenc_jax.lab.tasks.field_task import grid_points
from posenc_jax.lab.tasks.pictures.picture import Picture, pixel_centres

SIDE = 32  # of a volume
PLANES = "triplane(sizes=(32,), features=4, combine='{}')"
CUBE = 'dense_grid(components=3, levels=1, features=4, coarsest=15)'  # 13,500 numbers
NOISE = 0.2  # deviation, of values in [-1, 1]
PICTURE, PATCH, FARTHEST = 100, 80, 10  # pixels along a side, and of a move
POINTS = 4096  # of a step
CHECKS = 50  # how often a run is measured, if its steps divide by it
Rates = tuple[float, ...]
Numbers = Iterator[tuple[str, float, float]]  # variant, rate, value


def decibels(squares: Float[Array, '...']) -> Float[Array, '']:
    """PSNR of squared errors."""
    return 10 * jnp.log10(PEAK**2 / squares.mean())


def trained(
    model: nnx.Module,
    loss: Callable[..., Array],
    score: Callable[..., Array],
    steps: int,
    rate: float,
    key: Array,
) -> Float[np.ndarray, ' CHECKS']:
    """The score of a model CHECKS times while it is trained by Adam with a falling rate.

    Args:
      loss: (model, key, share of training that is over) -> number.
      score: model -> number.
    """
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps, 0.05))
    merged = lambda params: nnx.merge(graphdef, params, rest)

    def step(carry, number):
        params, state = carry
        own = lambda p: loss(merged(p), jax.random.fold_in(key, number), number / steps)
        updates, state = optimizer.update(jax.grad(own)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def part(carry, numbers):
        carry, _ = jax.lax.scan(step, carry, numbers)
        return carry, score(merged(carry[0]))

    numbers = jnp.arange(steps).reshape(math.gcd(CHECKS, steps), -1)
    run = jax.jit(lambda params: jax.lax.scan(part, (params, optimizer.init(params)), numbers)[1])
    return np.asarray(run(params), np.float64)


def field(components: int, features: str, network: str, seed: int) -> Field:
    """A field of one value a point."""
    cfg = FieldConfig(
        components=components, output_size=1, predicts='value', features=features, field=network
    )
    return Field(cfg, rngs=nnx.Rngs(seed))


def smooth(rng: np.random.Generator, points: Float[np.ndarray, 'N d']) -> Float[np.ndarray, ' N']:
    """A function of points of the unit cube: eight waves of up to three turns along each axis."""
    turns, phases = rng.uniform(-3, 3, (points.shape[1], 8)), rng.uniform(0, 1, 8)
    return np.cos(2 * np.pi * (points @ turns + phases)) @ rng.standard_normal(8)


def volumes(seed: int, rates: Rates, steps: int) -> Numbers:
    rng = np.random.default_rng(seed)
    points = grid_points(*[np.linspace(0, 1, SIDE)] * 3)
    pairs = itertools.combinations(range(3), 2)
    sums = sum(smooth(rng, points[:, own]) for own in pairs)
    factors = [smooth(rng, points[:, axis : axis + 1]) for axis in range(3)]
    products = np.prod([own - own.mean() for own in factors], axis=0)
    coords = jnp.asarray(points)
    for name, features, values in (
        ('sums, sum', PLANES.format('sum'), sums),
        ('sums, cube', CUBE, sums),
        ('products, product', PLANES.format('product'), products),
        ('products, sum', PLANES.format('sum'), products),
    ):
        targets = jnp.asarray(values / np.abs(values).max(), jnp.float32)
        squares = lambda model, at, targets=targets: jnp.square(
            model(coords[at])[:, 0] - targets[at]
        )
        drawn = lambda key: jax.random.randint(key, (POINTS,), 0, len(coords))
        loss = lambda model, key, _, squares=squares: squares(model, drawn(key)).mean()
        score = lambda model, squares=squares: decibels(squares(model, slice(None)))
        for rate in rates:
            model = field(3, features, 'linear()', seed)
            found = trained(model, loss, score, steps, rate, jax.random.key(seed))
            yield name, rate, found[-1]


def noise(seed: int, rates: Rates, steps: int) -> Numbers:
    points = Picture('synthetic', index=seed).points(64)
    noisy = points.targets + NOISE * np.random.default_rng(seed).standard_normal((64**2, 1))
    arrays = (points.coords, points.targets, noisy)
    coords, clean, seen = (jnp.asarray(a, jnp.float32) for a in arrays)
    loss = lambda model, *_: jnp.square(model(coords) - seen).mean()
    score = lambda model: decibels(jnp.square(model(coords) - clean))
    for name, network in (
        ('wire', 'wire(width=64, layers=3, omega=5.0, scale=5.0)'),
        ('siren', 'siren(width=64, layers=3)'),
        ('siren_10', 'siren(width=64, layers=3, first=10.0)'),
    ):
        for rate in rates:
            model = field(2, '', network, seed)
            found = trained(model, loss, score, steps, rate, jax.random.key(seed))
            yield name, rate, found.max()


class Patches(nnx.Module):
    """A field, and the places of all patches but the first, which lies at 0."""

    def __init__(self, count: int, seed: int, bands: int = 8):
        features = f'barf(bands={bands}, begin=0.0, end=0.4)'
        self.field = field(2, features, 'mlp(width=64, layers=3)', seed)
        self.places = nnx.Param(jnp.zeros((count - 1, 2)))

    def __call__(self, patch, coords, progress):
        places = jnp.concatenate([jnp.zeros((1, 2)), self.places[...]])
        return self.field(places[patch] + coords, progress=progress)


def alignment(seed: int, rates: Rates, steps: int) -> Numbers:
    rng, count = np.random.default_rng(seed), 5
    picture = Picture('synthetic', index=seed).points(PICTURE).targets.reshape(PICTURE, PICTURE)
    moves = rng.integers(-FARTHEST, FARTHEST + 1, (count, 2))
    moves[0] = 0
    true = jnp.asarray(2 * moves[1:] / PICTURE, jnp.float32)
    corners = (PICTURE - PATCH) // 2 + moves
    cut = [picture[r : r + PATCH, c : c + PATCH].ravel() for r, c in corners.tolist()]
    targets = jnp.asarray(np.stack(cut), jnp.float32)
    coords = jnp.asarray(grid_points(*[pixel_centres(PATCH) * PATCH / PICTURE] * 2))
    for name, opened in (('window', False), ('all waves', True)):

        def loss(model, key, progress, opened=opened):
            of_patch, of_pixel = jax.random.split(key)
            patch = jax.random.randint(of_patch, (POINTS,), 0, count)
            pixel = jax.random.randint(of_pixel, (POINTS,), 0, PATCH**2)
            found = model(patch, coords[pixel], 1.0 if opened else progress)
            return jnp.square(found[:, 0] - targets[patch, pixel]).mean()

        apart = lambda model: jnp.median(jnp.linalg.norm(model.places[...] - true, axis=-1))
        for rate in rates:
            found = trained(Patches(count, seed), loss, apart, steps, rate, jax.random.key(seed))
            yield name, rate, found[-1]
    yield 'at first', 0.0, float(np.median(np.linalg.norm(true, axis=-1)))


GROUPS: dict[str, tuple[Callable[[int, Rates, int], Numbers], Rates, int]] = {
    'volumes': (volumes, (1e-2, 3e-2), 800),
    'noise': (noise, (3e-4, 1e-2), 200),
    'alignment': (alignment, (1e-3, 3e-3), 1000),
}


def measured(group: str, seed: int, options: argparse.Namespace) -> Found:
    """The numbers of a group."""
    of_seed, rates, steps = GROUPS[group]
    for name, rate, value in of_seed(seed, rates, options.steps or steps):
        yield group, name, rate, float(value)


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'groups'),
    choose={'groups': GROUPS},
    options={'steps': (0, 'of every run; 0 for those of the group')},
    table={'title': 'Fields', 'x': 'rate', 'value': 'PSNR in dB, or distance'},
)
