"""NaViT's factorised tables: a trained vector of the row and one of the column."""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from posenc_jax.protocol.bounds import CONTEXT, NonNegative, Size
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.families import Embedding, check_token_width
from posenc_jax.protocol.grids import ANY_SIZE, check_grid, grid_size, on_grid
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import lookup_rows

Mode = Literal['absolute', 'fractional']
Combine = Literal['sum', 'product', 'stack']
COMBINE = ('sum', 'product', 'stack')


def navit_factorized_rows(
    pos: Num[Array, '#B L 2'], size: tuple[int, int] | Int[Array, '#B L 2'], counts: tuple[int, int]
) -> Float[Array, '#B L 2']:
    """`p / size (n - 1)`: the place in tables of n rows at which the share p / size of an image is
    read; the share of 1, which no patch has, is the last row.

    Args:
      pos: (row, column) of a patch.
      size: rows and columns of its image, one pair or one for each token.
      counts: n of the table of rows and of that of columns.
    """
    share = pos.astype(jnp.float32) / jnp.asarray(size, jnp.float32)
    return share * (jnp.array(counts, jnp.float32) - 1)


def navit_factorized_vectors(
    of_rows: Float[Array, 'rows F'],
    of_columns: Float[Array, 'columns F'],
    places: Num[Array, '#B L 2'],
    combine: Combine = 'sum',
) -> Float[Array, '#B L D']:
    """`phi_r[r] + phi_c[c]`; with 'product' `phi_r[r] phi_c[c]`, and with 'stack' both one after
    the other. Rows of the tables are interpolated at fractional places; NaN beyond the tables.

    Args:
      of_rows, of_columns: a vector for each row and for each column of an image.
      places: row and column.
      combine: 'sum', 'product' or 'stack'.

    Raises:
      SpecError: another way to combine them.

    Example:
      >>> rows, columns = jnp.array([[1.0], [2.0]]), jnp.array([[10.0], [20.0]])
      >>> navit_factorized_vectors(rows, columns, jnp.array([[[1, 0]]]), 'product').tolist()
      [[[20.0]]]
    """
    check_choice('navit_factorized combine', combine, COMBINE)
    row, column = lookup_rows(of_rows, places[..., 0]), lookup_rows(of_columns, places[..., 1])
    if combine == 'stack':
        return jnp.concatenate([row, column], axis=-1)
    return row + column if combine == 'sum' else row * column


@register(
    'navit_factorized',
    kind='encoding',
    card=Card(
        name='NaViT factorised positions',
        example='navit_factorized(64, 64)',
        use_when=('You train on images of many sizes and shapes with learned absolute positions.'),
        share='model',
        needs_training=True,
    ),
)
class NavitFactorized(Embedding):
    """Adds a trained vector of the row and a trained vector of the column to the token vectors.

    `x + phi_r[r] + phi_c[c]`. An image needs the rows and the columns to be in the tables, not the
    pairs of them. With 'fractional' a patch of an image of R x C patches reads the tables at its
    share, `r / R (n - 1)` of n rows, by linear interpolation; every size of image reads the whole
    tables, and the shape of the image is lost. The two vectors are added, multiplied, or stacked:
    then the row has the first half of the features. A token that is not on the grid, such as a
    class token at (-1, -1), gets zeros, and so does padding. Images that are packed in one sequence
    are documents.

    Differs from the paper, which has no public code: the first values are N(0, std^2), and the
    function of a share is a table. Sinusoids and Fourier features of the share, which the paper
    tries too, are left out.

    Args:
      rows, columns: of the two tables: the largest image for 'absolute', n for 'fractional'.
      mode: 'absolute' or 'fractional'.
      combine: 'sum', 'product' or 'stack'.
      size: R and C for 'fractional'. None takes the largest row and column of the valid tokens of a
        sequence, or of a packed document, plus one. A new token then changes the vectors of all
        others, so no decode cache can serve it.
      std: standard deviation of the initial vectors.
      model_dim: D, from the model.

    Raises:
      ValueError: 'stack' with an odd D, a size for 'absolute'; at call, positions that are not
        integers [B, L, 2] or, where they are known, beyond the tables or the size.

    Reference: Dehghani et al., arXiv 2307.06304.
    """

    components = 2

    @property
    def traits(self):
        follows = self.mode == 'fractional' and self.size is None
        return frozenset({'moves_positions'} if follows else ())

    def __init__(
        self,
        rows: Size,
        columns: Size,
        mode: Mode = 'absolute',
        combine: Combine = 'sum',
        size: tuple[Size, Size] | None = None,
        std: NonNegative = 0.02,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if mode == 'absolute' and size is not None:
            raise ValueError(
                f"navit_factorized size={size} is of mode='fractional' alone; 'absolute' reads the "
                'row and the column as they are'
            )
        if combine == 'stack' and model_dim % 2:
            raise ValueError(
                f"navit_factorized combine='stack' needs an even width, got {model_dim}; the "
                f'nearest is {model_dim + 1}'
            )
        self.mode: Mode = mode
        self.combine: Combine = combine
        self.size = size
        own = model_dim // 2 if combine == 'stack' else model_dim
        role = None if combine == 'stack' else 'width'
        drawn = lambda count: drawn_normal(rngs, (count, own), std, (None, role))
        self.rows, self.columns = drawn(rows), drawn(columns)

    def table(self, tok, width):
        counts = self.rows.shape[0], self.columns.shape[0]
        within = counts if self.mode == 'absolute' else self.size or ANY_SIZE
        check_grid('navit_factorized', tok.pos, whole=True, within=within, valid=tok.valid)
        own = self.rows.shape[1] * (2 if self.combine == 'stack' else 1)
        check_token_width('navit_factorized', own, width)
        here = on_grid(tok.pos) if tok.valid is None else on_grid(tok.pos) & tok.valid
        here = here[..., None]
        places = jnp.where(here, tok.pos, 0)
        if self.mode == 'fractional':
            size = grid_size(tok) if self.size is None else self.size
            inside = (places < jnp.asarray(size)).all(-1, keepdims=True)
            places = jnp.where(inside, navit_factorized_rows(places, size, counts), jnp.nan)
        found = navit_factorized_vectors(self.rows[...], self.columns[...], places, self.combine)
        return jnp.where(here, found, 0.0)
