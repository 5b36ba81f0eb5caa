"""BEiT's bias table: that of Swin for a whole grid, with entries for the class token."""

import jax.numpy as jnp
from flax import nnx

from posenc_jax.methods.swin_table import OffsetTable, Side, offset_count, swin_table_resized
from posenc_jax.protocol.bounds import CONTEXT
from posenc_jax.protocol.registry import Card, register


@register(
    'beit_table',
    kind='encoding',
    card=Card(
        name='BEiT bias table', example='beit_table(4, 5)', relative=True, needs_training=True
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
        if self.window == self.trained:
            return self.offsets[...]
        cells, beside = self.offsets[:-3], self.offsets[-3:]
        return jnp.concatenate([swin_table_resized(cells, self.trained, self.window), beside])
