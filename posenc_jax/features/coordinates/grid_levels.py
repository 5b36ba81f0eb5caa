"""The grids of Instant-NGP from coarse to fine: their sizes, the row of a vertex in its table, and
what a point reads.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from posenc_jax.features.coordinates.box import corner_weights, spread

PRIMES = np.array([1, 2654435761, 805459861, 3674653429], np.uint32)
MAX_VERTICES = 2**22  # along a side; a place in a finer grid has no fraction left in float32
Blend = Literal['linear', 'smoothstep']


class Level(NamedTuple):
    """One grid.

    Attributes:
      scale: s, cells along a side.
      vertices: along a side.
      rows: S, of the table.
      hashed: whether a hash gives the row of a vertex.
    """

    scale: float
    vertices: int
    rows: int
    hashed: bool


def grid_levels(
    components: int,
    levels: int,
    coarsest: int,
    growth: float,
    most: int | None = None,
    hashed: bool = True,
) -> tuple[Level, ...]:
    """The grids: `s_l = N b^l - 1`, `ceil(s_l) + 1` vertices along a side, and as many rows as
    vertices, rounded up to a multiple of 8.

    Args:
      components: d, coordinates of a point.
      levels: L.
      coarsest: N, vertices along a side of the first grid.
      growth: b.
      most: rows of a table at most; None for a row for every vertex.
      hashed: whether a hash chooses the row where there are fewer rows than vertices.

    Raises:
      ValueError: more than 2^22 vertices along a side.

    Example:
      >>> [(level.vertices, level.rows) for level in grid_levels(2, 3, 16, 2.0, most=2**10)]
      [(16, 256), (32, 1024), (64, 1024)]
    """
    made = []
    for number in range(levels):
        scale = coarsest * growth**number - 1
        vertices = math.ceil(scale) + 1
        if vertices > MAX_VERTICES:
            raise ValueError(
                f'level {number} has {vertices} vertices along a side, at most {MAX_VERTICES} are '
                'accepted; make levels, coarsest or growth smaller'
            )
        whole = -(-(vertices**components) // 8) * 8
        rows = whole if most is None else min(whole, most)
        made.append(Level(scale, vertices, rows, hashed and vertices**components > rows))
    return tuple(made)


def growth_factor(coarsest: int, finest: int, levels: int) -> float:
    """`b = exp((ln N_max - ln N) / (L - 1))`, the growth with which the last of L grids has N_max
    vertices along a side.

    Raises:
      ValueError: fewer than two levels, or a finest grid below the coarsest.
    """
    if levels < 2 or not 1 <= coarsest <= finest:
        raise ValueError(
            f'growth_factor takes at least 2 levels and 1 <= coarsest <= finest, got {levels} '
            f'levels, coarsest {coarsest} and finest {finest}'
        )
    return (finest / coarsest) ** (1 / (levels - 1))


def spatial_hash(*vertex: UInt32[Array, '...']) -> UInt32[Array, '...']:
    """`xor_a (q_a pi_a mod 2^32)`, uint32, with the factors 1, 2654435761, 805459861, 3674653429.

    Args:
      *vertex: the coordinates q_a of vertices, up to four; they broadcast.
    """
    return functools.reduce(jnp.bitwise_xor, [q * pi for q, pi in zip(vertex, PRIMES)])


def vertex_row(level: Level, *vertex: UInt32[Array, '...']) -> UInt32[Array, '...']:
    """The row of a vertex in the table of its level: the hash, or `sum_a q_a n^a` for n vertices
    along a side, modulo S. Where a table without a hash has too few rows, axes whose step n^a is
    above S do not count.
    """
    if level.hashed:
        found = spatial_hash(*vertex)
    else:
        steps = [level.vertices**axis for axis in range(len(vertex))]
        kept = [q * np.uint32(n) for q, n in zip(vertex, steps) if n <= level.rows]
        found = sum(kept[1:], kept[0])
        found = jnp.broadcast_to(found, jnp.broadcast_shapes(*(q.shape for q in vertex)))
    return found % np.uint32(level.rows)


def grid_features(
    x: Float[Array, '... d'],
    tables: Sequence[Float[Array, '_ F']],
    levels: Sequence[Level],
    blend: Blend = 'linear',
) -> Float[Array, '... LF']:
    """The rows of the corners of the cells that hold x, blended and joined, the coarsest level
    first.

    Args:
      x: points in [0, 1].
      tables: [S_l, F], one for each level.
      levels: see `grid_levels`.
      blend: 'linear' weighs by the shares f of a cell, 'smoothstep' by f^2 (3 - 2 f).
    """
    axes, found = range(x.shape[-1]), []
    for level, table in zip(levels, tables, strict=True):
        place = x * level.scale + 0.5
        low = jnp.floor(place)
        share = place - low
        share = share**2 * (3 - 2 * share) if blend == 'smoothstep' else share
        sides = low.astype(jnp.uint32)[..., None] + np.arange(2, dtype=np.uint32)
        rows = vertex_row(level, *spread([sides[..., axis, :] for axis in axes]))
        # On a CPU a sum of few arrays is several times as fast as a sum along short axes.
        corner = (*share.shape[:-1], 2 ** len(axes))
        first = lambda a: jnp.moveaxis(a.reshape(corner), -1, 0)
        each = first(rows.astype(jnp.int32)), first(corner_weights(share))
        rows, weights = jax.lax.optimization_barrier(each)
        corners = table.at[rows].get(mode='promise_in_bounds')
        found.append(sum(one * weight[..., None] for one, weight in zip(corners, weights)))
    return jnp.concatenate(found, axis=-1)
