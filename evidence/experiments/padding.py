"""The pattern that padding writes into a convolutional network, before and after training.

A network of four convolutions of 3 x 3 pixels and 16 channels, a mean over all places and a linear
map is trained on images of 16 x 16 pixels, once with each padding. Its classes are those of
`textures`, which no place tells, or those of `quadrant`, which only places tell. Then
`padding_pattern` compares the padded network with the same network on the true pixels around each
image. The ratio of the pattern that all images share to what differs between them (SNR) is a
number of its own at step 0 and at the last step. WORKDIR/results.csv has it, the mean size of what
padding changes (MAE), and the share of test images that are right; WORKDIR/textures.png shows the
patterns of the first seed.
Paper:     Lin et al. (arXiv 2206.01202): the pattern grows in training, with every kind of padding.
"""

import argparse
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.program import Program, Row
from posenc_jax.lab.analyse.ppp_padding import (
    PADDINGS,
    Convolution,
    PaddingPattern,
    margin,
    padding_pattern,
    pattern_plot,
    run_stack,
)
from posenc_jax.lab.tasks.images import Quadrant, Textures
from posenc_jax.lab.tasks.images.image_task import ImageTask

SIDE, CHANNELS, LAYERS, BATCH, IMAGES = 16, 16, 4, 32, 256
TASKS: dict[str, ImageTask] = {'textures': Textures(), 'quadrant': Quadrant()}
Params = list[dict[str, jax.Array]]


def start(seed: int, classes: int) -> Params:
    """Initial weights of He et al. for the convolutions, and the linear map."""
    rngs, sizes = nnx.Rngs(seed), [1, *[CHANNELS] * LAYERS]
    draw = lambda *shape, inputs: jax.random.normal(rngs.params(), shape) * (2 / inputs) ** 0.5
    layers = [
        {'kernel': draw(3, 3, a, b, inputs=9 * a), 'bias': jnp.zeros(b)}
        for a, b in zip(sizes, sizes[1:])
    ]
    return [
        *layers,
        {'kernel': draw(CHANNELS, classes, inputs=CHANNELS), 'bias': jnp.zeros(classes)},
    ]


def stack_of(params: Params) -> list[Convolution]:
    """The convolutions of a network."""
    return [Convolution(layer['kernel'], layer['bias']) for layer in params[:-1]]


def logits(params: Params, images: jax.Array, padding: str) -> jax.Array:
    """The logits of classes [B, classes]."""
    features = run_stack(images, stack_of(params), padding).mean((1, 2))
    return features @ params[-1]['kernel'] + params[-1]['bias']


def batches(task: ImageTask, seed: int, count: int, batch: int, side: int = SIDE):
    """`count` batches of images [count, batch, side, side, 1] and their classes."""
    rng = np.random.default_rng(seed)
    drawn = [task.images(rng, batch, side) for _ in range(count)]
    return tuple(jnp.asarray(np.stack(part)) for part in zip(*drawn))


def train(task: ImageTask, padding: str, seed: int, steps: int) -> tuple[Params, Params]:
    """The weights before and after training by Adam at 1e-3."""
    optimizer, first = optax.adam(1e-3), start(seed, task.output_size)
    images, classes = batches(task, seed, steps, BATCH)

    @jax.jit
    def step(params, state, images, classes):
        loss = lambda params: optax.softmax_cross_entropy_with_integer_labels(
            logits(params, images, padding), classes
        ).mean()
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    # A loop of Python: inside one of XLA, convolutions are many times slower on a CPU.
    params, state = first, optimizer.init(first)
    for batch, own in zip(images, classes):
        params, state = step(params, state, batch.astype(jnp.float32), own)
    return first, params


def measured(
    name: str, padding: str, seed: int, steps: int
) -> tuple[list[tuple[str, float, float]], PaddingPattern]:
    """(what, step, value) before and after training, and the pattern after it."""
    task, rows = TASKS[name], []
    (held,), (classes,) = batches(task, 10**6 + seed, 1, IMAGES)
    context = margin(stack_of(start(0, 2)))
    # Images with true pixels around them. Those of `textures` are noise of a torus, cut out of one
    # that is larger; those of `quadrant` show more of the scene.
    ((around,), _) = batches(task, 2 * 10**6 + seed, 1, IMAGES, SIDE + 2 * context)
    for at, params in zip((0, steps), train(task, padding, seed, steps)):
        right = logits(params, held.astype(jnp.float32), padding).argmax(-1) == classes
        found = padding_pattern(around.astype(jnp.float32), stack_of(params), padding)
        rows += [('SNR', at, found.snr), ('MAE', at, found.mae), ('accuracy', at, right.mean())]
    return [(what, float(at), float(value)) for what, at, value in rows], found


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The numbers of all tasks and paddings. Draws the patterns of textures of the first seed."""
    patterns: dict[str, PaddingPattern] = {}
    for name, padding, seed in itertools.product(TASKS, PADDINGS, options.seeds):
        found, pattern = measured(name, padding, seed, options.steps)
        for what, at, value in found:
            yield f'{name}, {what}', padding, at, seed, value
        if (name, seed) == ('textures', options.seeds[0]):
            patterns[padding] = pattern
    pattern_plot(patterns, options.workdir / 'textures.png')


PROGRAM = Program(
    __name__,
    __doc__,
    rows,
    options={'steps': 300},
    table={'title': 'padding', 'x': 'step', 'value': 'value', 'log': True},
)
