"""A trained vector for each cell of a grid, interpolated to grids of other sizes."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from posenc_jax.protocol.bounds import CONTEXT, Count, NonNegative, Size
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.families import Embedding
from posenc_jax.protocol.grids import ANY_SIZE, check_grid, grid_size, on_grid
from posenc_jax.protocol.registry import Card, register

# The largest negative weight of the cubic kernel, at distance about 4/3, is set by this number.
SHARPNESS = -0.75


def learned_grid_weights(place: Float[Array, '...'], count: int):
    """The four cells around a place among `count` cells, and their weights by the cubic kernel with
    a = -0.75; cells beyond the edge are those at the edge.

    Returns:
      The cells, integers [..., 4], and the weights, [..., 4], whose sum is 1.
    """
    first = jnp.floor(place)
    share = place - first
    far = lambda x: SHARPNESS * (((x - 5) * x + 8) * x - 4)  # 1 <= x < 2
    near = lambda x: ((SHARPNESS + 2) * x - (SHARPNESS + 3)) * x**2 + 1  # x <= 1
    weights = jnp.stack([far(share + 1), near(share), near(1 - share), far(2 - share)], axis=-1)
    cells = first.astype(jnp.int32)[..., None] + jnp.arange(-1, 3)
    return jnp.clip(cells, 0, count - 1), weights


def learned_grid_vectors(
    table: Float[Array, 'rows columns D'],
    pos: Num[Array, '#B L 2'],
    size: tuple[int, int] | Int[Array, '#B L 2'],
) -> Float[Array, '#B L D']:
    """The table, resized by bicubic interpolation to a grid of another size, at (row, column).

    The centres of the outer pixels' cells are aligned by half pixels, as in the code of vision
    transformers: place p of n reads the table of m at `(p + 1/2) m / n - 1/2`. There is no filter
    against aliasing. On a grid of the size of the table it is a look-up.

    Args:
      table: a vector for each cell.
      pos: (row, column).
      size: rows and columns of the grid, one pair or one for each token.
    """
    counts = jnp.array(table.shape[:2], jnp.float32)
    place = (pos.astype(jnp.float32) + 0.5) * (counts / jnp.asarray(size, jnp.float32)) - 0.5
    rows, of_rows = learned_grid_weights(place[..., 0], table.shape[0])
    columns, of_columns = learned_grid_weights(place[..., 1], table.shape[1])
    around = table[rows[..., :, None], columns[..., None, :]]
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum('blrcd,blr,blc->bld', around, of_rows, of_columns, precision=exact)


@register(
    'learned_grid',
    kind='encoding',
    card=Card(
        name='learned grid positions',
        example='learned_grid(4, 6, size=(8, 64), extra=1)',
        share='model',
        needs_training=True,
    ),
)
class LearnedGrid(Embedding):
    """Adds a trained vector of the cell (row, column) to the token vectors.

    `x + P[r, c]`. On a grid of another size than the table, P is resized by bicubic interpolation,
    see `learned_grid_vectors`; it is computed from positions with fixed weights. A token that is
    not on the grid, such as a class token at (-1, -1), gets zeros, or with `extra` the vector of
    its number. Differs from the paper: its code interpolates linearly; that of DeiT, which is
    followed here, cubically.

    Args:
      rows, columns: of the table.
      size: rows and columns of the grid on which the tokens stand. None takes the largest row and
        column of the valid tokens of a sequence, or of a packed document, plus one. A new token
        then changes the vectors of all others, so no decode cache can serve it.
      extra: how many trained vectors there are for tokens that are not on the grid; the token at
        (-n, -n) has the n-th. None of them may be at another place.
      std: standard deviation of the initial vectors.
      model_dim: D, from the model.

    Raises:
      ValueError: at call, positions that are not integers [B, L, 2] or, where they are known,
        beyond the size.

    Reference: Dosovitskiy et al., arXiv 2010.11929; Touvron et al., arXiv 2012.12877.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('learned_grid(2, 3)', model_dim=4)
      >>> grid = pj.Tokens.of(positions=[[[0, 0], [0, 1], [1, 2]]])
      >>> bool((part.table(grid, 4)[0, 2] == part.vectors[1, 2]).all())
      True
    """

    components = 2

    @property
    def traits(self):
        return frozenset({'moves_positions'} if self.size is None else ())

    def __init__(
        self,
        rows: Size,
        columns: Size,
        size: tuple[Size, Size] | None = None,
        extra: Count = 0,
        std: NonNegative = 0.02,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.size = size
        self.vectors = drawn_normal(rngs, (rows, columns, model_dim), std, (None, None, 'width'))
        beside = lambda: drawn_normal(rngs, (extra, model_dim), std, (None, 'width'))
        self.extra = beside() if extra else None

    def table(self, tok, width):
        within = self.size or ANY_SIZE
        check_grid('learned_grid', tok.pos, whole=True, within=within, valid=tok.valid)
        size = grid_size(tok) if self.size is None else self.size
        found = learned_grid_vectors(self.vectors[...], jnp.maximum(tok.pos, 0), size)
        inside = ((tok.pos >= 0) & (tok.pos < jnp.asarray(size))).all(-1, keepdims=True)
        found = jnp.where(inside, found, jnp.nan)
        beside = jnp.zeros((), jnp.float32)
        if self.extra is not None:
            number, count = -1 - tok.pos[..., 0], self.extra.shape[0]
            known = (number >= 0) & (number < count)
            beside = jnp.where(known[..., None], self.extra[jnp.clip(number, 0, count - 1)], 0.0)
        return jnp.where(on_grid(tok.pos)[..., None], found, beside)
