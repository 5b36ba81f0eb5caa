"""How many layers and samples positional attention needs, against standard attention.

Command:   python -m evidence.experiments.positional_depth [--seeds 0 1 2] [--steps 1500]
           [--tasks sort] [--workdir runs/positional_depth]
Set-up:    that of `evidence.experiments.positional_attention`: functions of eight numbers, width
           64, two heads. Positional attention with 2 and 6 layers and 30,000 samples, and with 6
           layers and 1,000 samples; standard attention with 2 layers and 30,000 samples.
Measured:  the mean squared error on new rows from the intervals of training
Number:    docs/claims.md, claim A29
Results:   WORKDIR/results.csv. A network whose errors are there is not trained again.
Paper:     Back de Luca et al. (arXiv 2410.01686): for some tasks positional attention needs more
           layers than standard attention, and then more samples.
"""

import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evidence.experiments.fitting import fitted
from evidence.experiments.runs import kept
from evidence.experiments.tables import report
from posenc_jax.lab.files.command import Parser
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


def measured(name: str, variant: str, seed: int, steps: int) -> float:
    """The error of a trained network on new rows."""
    task, made = NUMBER_TASKS[name], VARIANTS[variant]
    rng = np.random.default_rng([seed, 1])
    x, y = task.sample(rng, made.samples, NUMBERS)
    network = NumberNetwork(
        task.lists * NUMBERS, standard=made.standard, layers=made.layers, rngs=nnx.Rngs(seed)
    )
    chosen = (rng.integers(0, len(x), ROWS) for _ in range(steps))
    batches = ((x[rows], y[rows]) for rows in chosen)
    network = fitted(network, loss, batches, steps=steps, rate=1e-3)
    return float(nnx.jit(loss)(network, task.sample(np.random.default_rng(7), 2000, NUMBERS)))


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--steps', type=int, default=1500)
    parser.add_argument('--tasks', nargs='+', choices=tuple(NUMBER_TASKS), default=['sort'])
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/positional_depth')
    given, rows = parser.parse_args(arguments), []
    for name in given.tasks:
        for seed in given.seeds:
            for number, variant in enumerate(VARIANTS):
                settings = {'steps': given.steps, 'variant': VARIANTS[variant]._asdict()}
                path = given.workdir / f'{name}_{number}_{seed}.json'
                make = functools.partial(measured, name, variant, seed, given.steps)
                error = kept(path, settings, make)
                print(f'{name}, seed {seed}, {variant}: {error:.4g}', flush=True)
                rows.append((name, variant, VARIANTS[variant].layers, seed, error))
    report(rows, given.workdir, title='Eight numbers', x='layers', value='error', log=True)


if __name__ == '__main__':
    main()
