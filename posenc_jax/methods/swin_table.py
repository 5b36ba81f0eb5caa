"""Swin's bias table: a trained number for each offset of two cells of a window."""

import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Num

from posenc_jax.attention.buckets import take_bucket
from posenc_jax.methods.learned_grid import learned_grid_vectors
from posenc_jax.protocol.bounds import CONTEXT, Count, Ge, Le, NonNegative
from posenc_jax.protocol.encoding import Encoding, drawn_normal
from posenc_jax.protocol.families import Bias
from posenc_jax.protocol.grids import check_grid, on_grid
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens

# Cells along a side of a window: tables have a row for each offset, four times the cells.
Side = Annotated[int, Ge(1), Le(256)]


def offset_count(rows: int, columns: int) -> int:
    """How many offsets two cells of a window have, `(2 rows - 1) (2 columns - 1)`."""
    return (2 * rows - 1) * (2 * columns - 1)


def swin_table_ids(
    q_pos: Int[Array, '#B T 2'], k_pos: Int[Array, '#B S 2'], rows: int, columns: int
) -> Int[Array, '#B T S']:
    """The number of the offset of every pair, `(dr + rows - 1) (2 columns - 1) + dc + columns - 1`,
    where (dr, dc) is the cell of the query minus that of the key.

    With C = `offset_count(rows, columns)` the ids of pairs with a token that is not on the grid are
    C (the query is not on it), C + 1 (the key) and C + 2 (neither is). An offset that no two cells
    of the window have is C + 3.

    Raises:
      ValueError: positions that are not integers [B, L, 2].

    Example:
      >>> cells = jnp.array([[[0, 0], [0, 1], [1, 0], [1, 1]]])
      >>> swin_table_ids(cells[:, :1], cells, 2, 2).tolist()
      [[[4, 3, 1, 0]]]
    """
    for pos in (q_pos, k_pos):
        check_grid('a table of offsets', pos, whole=True)
    count = offset_count(rows, columns)
    down, right = (q_pos[:, :, None, axis] - k_pos[:, None, :, axis] for axis in (0, 1))
    inside = (jnp.abs(down) < rows) & (jnp.abs(right) < columns)
    ids = (down + rows - 1) * (2 * columns - 1) + right + columns - 1
    ids = jnp.where(inside, ids, count + 3)
    on_q, on_k = on_grid(q_pos)[:, :, None], on_grid(k_pos)[:, None, :]
    beside = jnp.where(on_k, count, jnp.where(on_q, count + 1, count + 2))
    return jnp.where(on_q & on_k, ids, beside).astype(jnp.int32)


def with_rows(table: Float[Array, 'entries N'], count: int, value: float) -> Array:
    """The table with rows of one value behind it."""
    # Joined and not padded, for which a kernel of a TPU has no gradient.
    return jnp.concatenate([table, jnp.full((count, table.shape[1]), value, table.dtype)])


def swin_table_bias(
    table: Float[Array, 'entries N'], ids: Int[Array, '#B T S']
) -> Float[Array, '#B N T S']:
    """`T[id, head]`, float32; NaN for the id after the last entry, which is in no table."""
    last = len(table) - 1
    # A kernel of a GPU loads entries of the table itself, and not of one with a row more.
    found = take_bucket(table.astype(jnp.float32).T[None, :, None], jnp.minimum(ids, last), 'all')
    return jnp.where((ids > last)[:, None], jnp.nan, found)


def swin_table_resized(
    table: Float[Array, 'offsets N'], window: tuple[int, int], size: tuple[int, int]
) -> Float[Array, 'new_offsets N']:
    """The table of a window for a window of another size.

    The table of each head is resized as an image of `(2 rows - 1) x (2 columns - 1)` pixels by
    bicubic interpolation, see `learned_grid_vectors`.

    Args:
      table: an entry for each offset, in the order of `swin_table_ids`.
      window: rows and columns of the window that the table is for.
      size: rows and columns of the new window.
    """
    if window == size:
        return table
    old, new = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (window, size))
    places = np.stack(np.divmod(np.arange(new[0] * new[1], dtype=np.int32), new[1]), axis=-1)
    image = table.astype(jnp.float32).reshape(*old, -1)
    return learned_grid_vectors(image, jnp.asarray(places)[None], new)[0]


def extent(tok: Tokens) -> tuple[int, int] | None:
    """Rows and columns of the smallest window that holds the real cells of any one document; None
    if they are traced.
    """
    if tok.grid is not None:
        return tok.grid
    known = [a for a in (tok.pos, tok.segment, tok.valid) if a is not None]
    if any(isinstance(a, Tracer) for a in known):
        return None
    pos = np.asarray(tok.pos)
    here: Any = ~(pos < 0).all(-1)  # in NumPy, since JAX would trace a known array too
    here = here if tok.valid is None else here & np.asarray(tok.valid)
    segment = np.zeros((1, 1), np.int32) if tok.segment is None else np.asarray(tok.segment)
    rows = max(len(pos), len(here), len(segment))
    pos, here = (np.broadcast_to(a, (rows, *a.shape[1:])) for a in (pos, here))
    segment = np.broadcast_to(segment, here.shape)
    largest = np.ones(2, np.int64)
    for cells, real, documents in zip(pos, here, segment):
        for document in np.unique(documents[real]):
            own = cells[real & (documents == document)]
            largest = np.maximum(largest, own.max(0) - own.min(0) + 1)
    return int(largest[0]), int(largest[1])


class OffsetTable(Bias):
    """A bias that is read from a table by the offset of two cells. A subclass sets `window`, takes
    another one as its argument `size`, and defines `entries`.

    Attributes:
      window: rows and columns of the window in which the tokens stand.
    """

    components = 2
    window: tuple[int, int]

    def entries(self) -> Float[Array, 'entries N']:
        """The bias of all offsets in the order of `swin_table_ids`, and of three kinds of pairs
        with a token that is not on the grid.
        """
        raise NotImplementedError

    def project(self, q, k, v, tq, tk, x=None):
        # Nothing changes. This door sees whole sequences, and `place` would make a model hold the
        # table once instead of once in every layer.
        for tok in (tq, tk):
            check_grid(self.registered_key, tok.pos, whole=True)
            found = extent(tok)
            if found is not None and any(n > own for n, own in zip(found, self.window)):
                needs, has = (f'{rows} x {columns}' for rows, columns in (found, self.window))
                raise ValueError(
                    f'{self.registered_key}: the tokens stand in a window of {needs} cells, and '
                    f'the table is for one of {has}, which is smaller; use size={found}, or larger '
                    'rows and columns'
                )
        return q, k, v, tq, tk

    def sample_positions(self, length: int) -> Int[np.ndarray, '1 L 2']:
        """The cells of the window, again and again."""
        rows, columns = self.window
        cells = np.arange(length, dtype=np.int32) % (rows * columns)
        return np.stack(np.divmod(cells, columns), axis=-1)[None]

    def bias(self, q_pos, k_pos):
        return swin_table_bias(self.entries(), swin_table_ids(q_pos, k_pos, *self.window))

    def logits(self, s, q, k, tq, tk, seen, carry):
        # Padding may be anywhere. Beside the grid it is in no offset that the table lacks.
        tq, tk = (
            tok
            if tok.valid is None
            else dataclasses.replace(tok, pos=jnp.where(tok.valid[..., None], tok.pos, -1))
            for tok in (tq, tk)
        )
        # Pairs that are not seen have offsets that the table may lack. What another part of a chain
        # makes of a NaN has a NaN for its gradient, even where nothing reads it.
        found, carry = super().logits(s, q, k, tq, tk, seen, carry)
        return jnp.where(seen, found, s), carry


def swin_table_same_window(
    q_pos: Num[Array, '#B T 2'], k_pos: Num[Array, '#B S 2'], window: tuple[int, int], shift: int
) -> Array:
    """Which pairs are in one window, `floor((p - shift) / size)`, or are not both on the grid."""
    number = lambda pos: jnp.floor_divide(pos - shift, jnp.asarray(window, jnp.int32))
    same = (number(q_pos)[:, :, None] == number(k_pos)[:, None, :]).all(-1)
    return same | ~on_grid(q_pos)[:, :, None] | ~on_grid(k_pos)[:, None, :]


@register(
    'swin_table',
    kind='encoding',
    card=Card(
        name='Swin bias table',
        example='swin_table(4, 5)',
        use_when=(
            'You train on images of one size in windows; to compare with learned '
            'positions, since a measured claim is contrary.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class SwinTable(OffsetTable):
    """Adds a trained number of the offset in rows and columns to the logits, one for each head.

    `logit_ij = q_i . k_j / sqrt(H) + T[h, r_i - r_j, c_i - c_j]`. Positions are (row, column). All
    tokens lie in one window of `rows` x `columns` cells, at any place of the grid. In a window of
    another size T is resized by bicubic interpolation, see `swin_table_resized`. With `windows` the
    grid is cut into windows, and a query sees the keys of its own window; `shift` moves all cuts,
    and windows at the edge are then smaller. Pairs with a token that is not on the grid, such as a
    class token at (-1, -1), get 0, and such a token sees all keys and is seen by all queries.

    Differs from the paper: a mask hides the keys of other windows, where the code adds -100 to
    their logits. The code truncates the first values at 2, which is a hundred standard deviations.

    Args:
      rows, columns: of the window that T is for.
      size: rows and columns of the window in which the tokens stand; None for those of T.
      windows: whether a query sees its own window alone. It is False where a row of the batch is
        one window.
      shift: rows and columns by which the windows are moved; half a window in every other layer of
        the paper.
      std: standard deviation of the first values.
      heads: N, from the model.

    Raises:
      ValueError: a shift without windows; at call, positions that are not integers [B, L, 2], or
        tokens that need a larger window. Where positions are traced, such an offset gives NaN.

    Reference: Liu, Lin, Cao, Hu, Wei, Zhang, Lin, Guo, arXiv 2103.14030.
    """

    def __init__(
        self,
        rows: Side,
        columns: Side,
        size: tuple[Side, Side] | None = None,
        windows: bool = False,
        shift: Count = 0,
        std: NonNegative = 0.02,
        heads: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if shift and not windows:
            raise ValueError(f'swin_table shift={shift} moves windows: write windows=True')
        self.trained = rows, columns
        self.window = (rows, columns) if size is None else size
        self.shift = shift
        self.offsets = drawn_normal(
            rngs, (offset_count(rows, columns), heads), std, (None, 'heads')
        )

    def entries(self):
        of_cells = swin_table_resized(self.offsets[...], self.trained, self.window)
        return with_rows(of_cells, 3, 0.0)


class WindowedSwinTable(SwinTable, where=lambda given: given['windows']):
    """The table with a mask of windows: the grid may have any size."""

    traits = frozenset({'leaves_gaps'})
    project = Encoding.project

    def mask(self, tq, tk):
        return swin_table_same_window(tq.pos, tk.pos, self.window, self.shift)[:, None]
