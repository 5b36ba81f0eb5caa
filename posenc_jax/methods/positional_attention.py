"""Positional attention: attention weights depend on positions alone."""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.products import heads_first, over_batch, scaled_dot_product
from posenc_jax.methods.sinusoidal import sinusoidal_table
from posenc_jax.protocol.bounds import CONTEXT
from posenc_jax.protocol.encoding import Encoding, PositionRange, drawn_uniform
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import check_range, lookup_rows

Table = Literal['identity', 'sinusoidal']
TABLES = ('identity', 'sinusoidal')


def positional_attention_projected(
    pos: Num[Array, '#B L'], w: Float[Array, 'e N e'], *, table: Table = 'identity'
) -> Float[Array, '#B L N e']:
    """`P[pos] w`, where P is the identity or the sinusoidal encodings.

    With the identity it is row `pos` of `w`, and NaN if there is no such row.
    """
    if pos.ndim != 2:
        raise ValueError(
            'positional_attention needs one position per token [B, L], got positions of shape '
            f'{pos.shape}'
        )
    size = w.shape[0]
    if check_choice('positional_attention table', table, TABLES) == 'identity':
        return lookup_rows(w.reshape(size, -1), pos).reshape(*pos.shape, *w.shape[1:])
    return jnp.einsum('ble,enf->blnf', sinusoidal_table(pos, size), w)


@register(
    'positional_attention',
    kind='encoding',
    card=Card(
        name='positional attention',
        example='positional_attention(max_len=64)',
        share='layer',
        needs_training=True,
    ),
)
class PositionalAttention(Encoding):
    """Replaces the logits by products of projected positional encodings.

    `logit_ij = (P_i W_q + b_q) . (P_j W_k) / sqrt(e)` per head; every head has P of the full width
    e. The queries and keys of the layer are not read, so their projections get no gradient. With
    the identity as P, the default, e is `max_len` and the projections are tables with a row per
    position. If all sequences of a batch have the same positions, the logits are computed once.
    Differs from the paper: W_q and W_k are two arrays where the paper has one Linear. There is no
    b_k, which would add the same number to all logits of a query. Positions beyond the identity are
    an error, as with any table.

    Args:
      max_len: number of positions of the identity; not used with sinusoidal encodings.
      table: P, 'identity' or 'sinusoidal'.
      width: e of sinusoidal encodings; None takes the head width.
      heads, head_dim, rngs: from the model.

    Raises:
      ValueError: 'identity' without a max_len of at least 1, or with a width; 'sinusoidal' with a
        max_len or a width below 2; at call, positions with several components and, under
        'identity', positions that are fractional or beyond the table. If positions are traced, the
        number of tokens is checked instead, and a position beyond the table gives NaN.

    Reference: Back de Luca, Giapitzakis, Yang, Veličković, Fountoulakis, arXiv 2410.01686.

    Example:
      >>> import posenc_jax as pj
      >>> pj.make('positional_attention(max_len=9)', heads=2, head_dim=4).w_q.shape
      (9, 2, 9)
    """

    traits = frozenset({'reads_no_projections', 'forms_logits'})

    def __init__(
        self,
        max_len: int | None = None,
        table: Table = 'identity',
        width: int | None = None,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        identity = table == 'identity'
        if identity and (max_len is None or max_len < 1 or width is not None):
            raise ValueError(
                "positional_attention(table='identity') needs max_len of at least 1 and no "
                f'width, got {max_len=}, {width=}'
            )
        size = max_len if identity else head_dim if width is None else width
        if not identity and (max_len is not None or size < 2):
            raise ValueError(
                "positional_attention(table='sinusoidal') needs a width of at least 2 and no "
                f'max_len, got {max_len=}, {size}'
            )
        self.table, self.max_len = table, max_len
        bound = (6 / (size + 2 * size * heads)) ** 0.5
        drawn = lambda: drawn_uniform(rngs, (size, heads, size), bound, (None, 'heads', None))
        self.w_q, self.w_k = drawn(), drawn()
        self.b_q = nnx.Param(jnp.zeros((heads, size), jnp.float32), axes=('heads', None))

    @property
    def position_range(self):
        return PositionRange(accepts=self.max_len)

    def place(self, tok, *, key=None):
        if self.max_len is not None:
            check_range('positional_attention', tok, self.max_len, "table='sinusoidal'")
        return tok

    def project(self, q, k, v, tq, tk, x=None):
        of_q = (
            positional_attention_projected(tq.pos, self.w_q[...], table=self.table) + self.b_q[...]
        )
        of_k = positional_attention_projected(tk.pos, self.w_k[...], table=self.table)
        tq = tq.with_feats(positional_attention=of_q)
        return q, k, v, tq, tk.with_feats(positional_attention=of_k)

    def logits(self, s, q, k, tq, tk, seen, carry):
        of_q, of_k = (heads_first(tok.feats['positional_attention']) for tok in (tq, tk))
        if of_q.shape[0] == of_k.shape[0] == 1:
            return over_batch(scaled_dot_product(of_q, of_k), q.shape[0]), carry
        rows = max(of_q.shape[0], of_k.shape[0])
        of_q, of_k = (jnp.broadcast_to(a, (rows, *a.shape[1:])) for a in (of_q, of_k))
        return scaled_dot_product(of_q, of_k), carry
