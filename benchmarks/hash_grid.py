"""Lookups in a multiresolution hash grid: `hash_grid` against the same sums in NumPy.

    # sixteen levels, a million points of a square: about 75 s of processor time
    python benchmarks/hash_grid.py
    python benchmarks/hash_grid.py --points=4096 --levels=4 --log2_rows=10 --rounds=2

Both contenders read the features of all points, and the backward pass adds the gradient of the sum
of features times random weights to the tables. NumPy computes a level at a time, all points at
once, and adds gradients by `add.at` a column at a time, which took a third of the time of
`bincount`. The contenders take turns in one process, and times are processor times. The largest
differences of features and of gradients are printed too, over the largest of each; they come from
the rounding of places in fine grids to float32.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measure import Compiled, options, shorter, show, take_turns, temporary_mib

from posenc_jax.features.coordinates import make_features

PRIME = 2654435761  # of the second coordinate


def corners(x: np.ndarray, level, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [N, 4] of the table of a level and their weights, of points of the unit square."""
    place = x * np.float32(level.scale) + np.float32(0.5)
    low = np.floor(place)
    share = place - low
    side = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.uint32)
    q = low.astype(np.uint32)[:, None] + side
    if level.vertices**2 > rows:
        row = q[..., 0] ^ q[..., 1] * np.uint32(PRIME)
    else:
        row = q[..., 0] + q[..., 1] * np.uint32(level.vertices)
    return row % np.uint32(rows), np.where(side == 1, share[:, None], 1 - share[:, None]).prod(-1)


def by_numpy(x: np.ndarray, tables: list[np.ndarray], levels) -> np.ndarray:
    """The features [N, L F] of points."""
    found = []
    for table, level in zip(tables, levels):
        row, weight = corners(x, level, len(table))
        found.append((table[row] * weight[..., None]).sum(1))
    return np.concatenate(found, 1)


def gradient_by_numpy(x, tables, levels, cotangent) -> list[np.ndarray]:
    """The features' sum with weights, differentiated by the tables."""
    grads, width = [], tables[0].shape[1]
    for number, (table, level) in enumerate(zip(tables, levels)):
        row, weight = corners(x, level, len(table))
        own = cotangent[:, number * width : (number + 1) * width]
        grad = np.zeros((width, len(table)), np.float32)
        for column in range(width):
            np.add.at(grad[column], row.ravel(), (weight * own[:, column, None]).ravel())
        grads.append(grad.T)
    return grads


def main():
    args = options(
        __doc__, points=1_000_000, levels=16, log2_rows=19, growth=1.5, rounds=(1, 'of both'),
    )  # fmt: skip
    spec = f'hash_grid(levels={args.levels}, log2_rows={args.log2_rows}, growth={args.growth})'
    encoder = make_features(spec)
    tables = [np.asarray(table[...]) for table in encoder.tables]
    rng = np.random.default_rng(0)
    x = rng.random((args.points, 2), np.float32)
    weights = rng.standard_normal((args.points, encoder.width), np.float32)
    graphdef, state = nnx.split(encoder)

    def read(state, x):
        return nnx.merge(graphdef, state).encode(x)

    def both(state, x, weights):
        features, pull = jax.vjp(lambda state: read(state, x), state)
        return features, pull(weights)[0]

    on_device = jnp.asarray(x), jnp.asarray(weights)
    ways = {
        'forward': Compiled(read, state, on_device[0]),
        'forward, NumPy': lambda: by_numpy(x, tables, encoder.levels),
        'both passes': Compiled(both, state, *on_device),
        'both passes, NumPy': lambda: (
            by_numpy(x, tables, encoder.levels),
            gradient_by_numpy(x, tables, encoder.levels, weights),
        ),
    }
    seconds = take_turns(ways, args.rounds, time.process_time)
    rows = []
    for name in ('forward', 'both passes'):
        base = f'{name}, NumPy'
        own, faster = shorter(seconds, name, base)
        rows.append((name, own, shorter(seconds, base, base)[0], faster, temporary_mib(ways[name])))
    columns = ('pass', 'hash_grid, ms', 'NumPy, ms', 'NumPy over hash_grid', 'temporary MiB')
    lookups = f'{args.points} points, {args.levels} levels'
    show(f'{lookups}: median (minimum)', columns, rows)
    found, slopes = ways['both passes']()
    expected, grads = ways['both passes, NumPy']()
    apart = lambda a, b: float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())
    worst = max(map(apart, jax.tree.leaves(slopes), grads))
    print(f'largest difference: features {apart(found, expected):.1e}, gradients {worst:.1e}')


if __name__ == '__main__':
    main()
