"""BEiT's bias table: that of Swin for a whole grid, with entries for the class token."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.methods.swin_table import OffsetTable, Side, offset_count, swin_table_resized
from posenc_jax.protocol.bounds import CONTEXT
from posenc_jax.protocol.registry import Card, register


def beit_table_resized(
    table: Float[Array, 'entries N'], window: tuple[int, int], size: tuple[int, int]
) -> Float[Array, 'new_entries N']:
    """The table of a grid for a grid of another size: the entries of the offsets are resized, see
    `swin_table_resized`, and the three of the class token are kept.

    `swin_table_bias` reads it by the ids of `swin_table_ids`.

    Args:
      table: an entry for each offset, in the order of `swin_table_ids`, and three behind them.
      window: rows and columns of the grid that the table is for.
      size: rows and columns of the new grid.

    Reference: Bao, Dong, Piao, Wei, arXiv 2106.08254; the interpolation is that of this library.

    Example:
      >>> table = jnp.arange(6.0)[:, None]
      >>> beit_table_resized(table, (1, 2), (2, 2)).shape
      (12, 1)
      >>> beit_table_resized(table, (1, 2), (2, 2))[-3:, 0].tolist()
      [3.0, 4.0, 5.0]
    """
    if window == size:
        return table
    return jnp.concatenate([swin_table_resized(table[:-3], window, size), table[-3:]])


@register(
    'beit_table',
    kind='encoding',
    card=Card(
        name='BEiT bias table',
        example='beit_table(4, 5)',
        use_when=(
            'You train a model on images of one size that has a class token, and want a '
            'learned bias of the offset.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class BeitTable(OffsetTable):
    """Adds a trained number of the offset of two cells to the logits, and of the class token.

    `logit_ij = q_i . k_j / sqrt(H) + T[h, b(i, j)]`, where b(i, j) counts the offsets as
    `swin_table_ids` does: with N = (2 rows - 1) (2 columns - 1) + 3 entries a class token that
    reads a cell has entry N - 3, a cell that reads the class token N - 2, and the class token
    itself N - 1. A class token is a token that is not on the grid, such as one at (-1, -1). T
    starts at 0. For a grid of another size the entries of the cells are resized by bicubic
    interpolation, see `swin_table_resized`, and the other three are kept. `share='model'` in the
    config gives all layers one table, which is an option of the paper's code.

    Differs from the paper: its code resizes a table by cubic splines over distances that grow
    geometrically. Biases of the projections are those of the layer (the code has them for queries
    and values).

    Args:
      rows, columns: of the grid that T is for.
      size: rows and columns of the grid on which the tokens stand; None for those of T.
      heads: N, from the model.

    Raises:
      ValueError: at call, positions that are not integers [B, L, 2], or tokens that need a larger
        grid. Where positions are traced, such an offset gives NaN.

    Reference: Bao, Dong, Piao, Wei, arXiv 2106.08254.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('beit_table(1, 2)', heads=1)
      >>> part.offsets[...] = jnp.arange(6.0)[:, None]
      >>> pos = jnp.array([[[-1, -1], [0, 0], [0, 1]]])
      >>> part.bias(pos, pos)[0, 0].astype(int).tolist()
      [[5, 3, 3], [4, 1, 0], [4, 2, 1]]
    """

    def __init__(
        self, rows: Side, columns: Side, size: tuple[Side, Side] | None = None, heads: int = CONTEXT
    ):
        self.trained = rows, columns
        self.window = (rows, columns) if size is None else size
        zeros = jnp.zeros((offset_count(rows, columns) + 3, heads), jnp.float32)
        self.offsets = nnx.Param(zeros, axes=(None, 'heads'))

    def entries(self):
        return beit_table_resized(self.offsets[...], self.trained, self.window)
