"""How many layers and samples positional attention needs, against standard attention.

Set-up:    that of `evidence.experiments.positional_attention`: functions of eight numbers, width
           64, two heads. Positional attention with 2 and 6 layers and 30,000 samples, and with 6
           layers and 1,000 samples; standard attention with 2 layers and 30,000 samples.
Measured:  the mean squared error on new rows from the intervals of training
Paper:     Back de Luca et al. (arXiv 2410.01686): for some tasks positional attention needs more
           layers than standard attention, and then more samples.
"""

import argparse
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evidence.experiments.fitting import fitted
from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.tasks.number_lists import NUMBER_TASKS
from posenc_jax.mixers.number_network import NumberNetwork

NUMBERS, ROWS = 8, 128


class Variant(NamedTuple):
    """A network and its data."""

    standard: bool
    layers: int
    samples: int


VARIANTS = {
    'positional, 2 layers': Variant(False, 2, 30000),
    'positional, 6 layers': Variant(False, 6, 30000),
    'positional, 6 layers, 1000 samples': Variant(False, 6, 1000),
    'standard, 2 layers': Variant(True, 2, 30000),
}


def loss(network: NumberNetwork, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The mean squared error."""
    return jnp.square(network(batch[0]) - batch[1]).mean()


def measured(name: str, variant: str, seed: int, options: argparse.Namespace) -> Found:
    """The error of a trained network on new rows."""
    steps = options.steps
    task, made = NUMBER_TASKS[name], VARIANTS[variant]
    rng = np.random.default_rng([seed, 1])
    x, y = task.sample(rng, made.samples, NUMBERS)
    network = NumberNetwork(
        task.lists * NUMBERS, standard=made.standard, layers=made.layers, rngs=nnx.Rngs(seed)
    )
    chosen = (rng.integers(0, len(x), ROWS) for _ in range(steps))
    batches = ((x[rows], y[rows]) for rows in chosen)
    network = fitted(network, loss, batches, steps=steps, rate=1e-3)
    test = task.sample(np.random.default_rng(7), 2000, NUMBERS)
    yield name, variant, made.layers, float(nnx.jit(loss)(network, test))


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'tasks', 'variants'),
    choose={'tasks': NUMBER_TASKS, 'variants': VARIANTS},
    options={'steps': 1500},
    table={'title': 'Eight numbers', 'x': 'layers', 'value': 'error', 'log': True},
)
