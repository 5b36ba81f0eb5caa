"""Multiresolution grids of Instant-NGP: trained tables at the vertices of grids from coarse to
fine, with a row for every vertex or with rows that vertices share by a hash.
"""

from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from posenc_jax.features.coordinates.box import Box, BoxEncoder, check_tables, checked_box
from posenc_jax.features.coordinates.encoder import Wide, limited
from posenc_jax.features.coordinates.grid_levels import (
    MAX_VERTICES,
    PRIMES,
    Blend,
    Level,
    grid_features,
    grid_levels,
)
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.bounds import Ge, Le, Positive
from posenc_jax.protocol.registry import Card, register

Levels = Annotated[int, Ge(1), Le(32)]
Coordinates = Annotated[int, Ge(1), Le(len(PRIMES))]
Vertices = Annotated[int, Ge(2), Le(MAX_VERTICES)]
Growth = Annotated[float, Ge(1), Le(16)]
LogRows = Annotated[int, Ge(3), Le(27)]


class GridEncoder(BoxEncoder):
    """The tables of some levels, and how a point reads them."""

    def __init__(self, levels: Sequence[Level], components, features, blend, init, box, rngs):
        name = type(self).card.key
        self.components, self.width = components, limited(f'{name}:', len(levels) * features)
        self.box, self.blend, self.levels = checked_box(name, box), blend, tuple(levels)
        check_tables(name, features * sum(level.rows for level in levels))
        drawn = lambda rows: init * jax.random.uniform(rngs.params(), (rows, features), minval=-1.0)
        self.tables = nnx.List(
            nnx.Param(drawn(level.rows), axes=(None, None), decays=False) for level in levels
        )

    def encode(self, coords):
        x, inside = self.places(coords)
        found = grid_features(x, [table[...] for table in self.tables], self.levels, self.blend)
        return jnp.where(inside, found, jnp.nan)


@register(
    'hash_grid',
    kind='coordinates',
    card=Card(
        name='Multiresolution hash grid',
        example='hash_grid(levels=3, log2_rows=6, coarsest=4, init=1.0, box=(-1.0, 1.0))',
        use_when=(
            'You fit a field with fine detail quickly, and a grid of all vertices is too '
            'large; the measured claim is open.'
        ),
        needs_training=True,
    ),
)
class HashGrid(GridEncoder):
    """Trained vectors at the vertices of grids from coarse to fine. A point reads the corners of
    its cell in each grid; the vertices of a fine grid share the rows of a table by a hash.

    `z_l = sum_q w_q T_l[i_l(q)]`, `i_l(q) = xor_a(q_a pi_a) mod S_l`, over the corners q of the
    cell that holds `x s_l + 1/2`, `s_l = N b^l - 1`. A coarse grid, whose vertices fit into its
    table, has a row for each of them, the first coordinate the fastest. The features of all levels
    are joined. The weights w are products of the shares of the cell along each coordinate, so that
    features are continuous. N counts the vertices of the first grid along a side, as in the code.
    A last corner may lie one vertex beyond its grid, and its row is then taken modulo S, as there.
    Weight decay leaves the tables alone.

    Differs from the paper: b is given, and `growth_factor` has the paper's choice of it. The sizes
    of levels are computed in float64, where the code has float32.

    Args:
      components: d, coordinates of a point.
      levels: L.
      features: F, of a level.
      log2_rows: log2 of the rows of a table at most.
      coarsest: N.
      growth: b.
      blend: 'linear', or 'smoothstep', whose slope is continuous too.
      init: the tables are drawn uniformly from -init .. init.
      box: the smallest and the largest coordinate; (-1.0, 1.0) for the points of pictures.

    Raises:
      ValueError: more than 2^22 vertices along a side, tables of more than 1 GiB, an empty box; at
        call, points outside the box.

    Reference: Müller, Evans, Schied, Keller, arXiv 2201.05989.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> make_features('hash_grid(levels=4, log2_rows=8)').encode(jnp.zeros((5, 2))).shape
      (5, 8)
    """

    def __init__(
        self,
        components: Coordinates = 2,
        levels: Levels = 16,
        features: Wide = 2,
        log2_rows: LogRows = 19,
        coarsest: Vertices = 16,
        growth: Growth = 2.0,
        blend: Blend = 'linear',
        init: Positive = 1e-4,
        box: Box = (0.0, 1.0),
        rngs: nnx.Rngs = CONTEXT,
    ):
        made = grid_levels(components, levels, coarsest, growth, 2**log2_rows)
        super().__init__(made, components, features, blend, init, box, rngs)


@register(
    'dense_grid',
    kind='coordinates',
    card=Card(
        name='Multiresolution grid',
        example='dense_grid(levels=2, coarsest=3, init=1.0, box=(-1.0, 1.0))',
        use_when=(
            'You fit a field in few dimensions and have memory for every vertex of the grids.'
        ),
        needs_training=True,
    ),
)
class DenseGrid(GridEncoder):
    """Trained vectors at the vertices of grids from coarse to fine, with a row for every vertex.

    `z_l = sum_q w_q T_l[i_l(q)]`, `i_l(q) = sum_a q_a n_l^a mod S_l`, over the corners q of the
    cell that holds `x s_l + 1/2`, with n_l vertices along a side. All else is as in `hash_grid`.
    A tiled grid has at most N^d rows in each level: they repeat over a finer grid.

    Differs from the paper: four levels unless more are asked for, because the sixteen of the code
    have no room.

    Args:
      components: d, coordinates of a point.
      levels: L.
      features: F, of a level.
      coarsest: N, vertices along a side of the first grid.
      growth: b.
      tiled: whether finer grids repeat as many rows as the first one has.
      blend: 'linear' or 'smoothstep'.
      init: the tables are drawn uniformly from -init .. init.
      box: the smallest and the largest coordinate; (-1.0, 1.0) for the points of pictures.

    Raises:
      ValueError: as `hash_grid`.

    Reference: Müller, Evans, Schied, Keller, arXiv 2201.05989.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> encoder = make_features('dense_grid(components=3, levels=2, coarsest=4)')
      >>> [table.shape for table in encoder.tables]
      [(64, 2), (512, 2)]
    """

    def __init__(
        self,
        components: Coordinates = 2,
        levels: Levels = 4,
        features: Wide = 2,
        coarsest: Vertices = 16,
        growth: Growth = 2.0,
        tiled: bool = False,
        blend: Blend = 'linear',
        init: Positive = 1e-4,
        box: Box = (0.0, 1.0),
        rngs: nnx.Rngs = CONTEXT,
    ):
        most = coarsest**components if tiled else None
        made = grid_levels(components, levels, coarsest, growth, most, hashed=False)
        super().__init__(made, components, features, blend, init, box, rngs)
