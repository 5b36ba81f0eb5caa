"""Reverse positions: counted from the newest token, which is always at 0."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.length import current_length
from posenc_jax.protocol.registry import Card, register


def reverse_pe_ids(order: Int[Array, '#B L'], count: Int[Array, '#B #L']) -> Int[Array, '#B L']:
    """`n - 1 - t`, of the t-th of n tokens."""
    return count - 1 - order


def reverse_pe_newest_first(
    x: Num[Array, 'B L *F'], last: Int[Array, '#B'] | int
) -> Num[Array, 'B L *F']:
    """Encoder outputs in reverse order: slot s holds the output of the token s before the newest.

    It serves a decoder that reads a list of encoder outputs. Slots without a token hold the first
    token of the row; mask them like padding.

    Args:
      x: one row per token.
      last: index of the newest token of each row, `Tokens.last`.

    Raises:
      ValueError: a known `last` that is no index of a row.
    """
    if not isinstance(last, jax.core.Tracer):
        known = np.asarray(last)
        if known.min() < 0 or known.max() >= x.shape[1]:
            raise ValueError(
                f'reverse_pe_newest_first: last lies in 0 .. {x.shape[1] - 1}, '
                f'got {known.min()} .. {known.max()}'
            )
    index = jnp.maximum(jnp.reshape(jnp.asarray(last), (-1, 1)) - jnp.arange(x.shape[1]), 0)
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


@register(
    'reverse_pe',
    kind='encoding',
    card=Card(
        name='reverse positions',
        example='reverse_pe() | sinusoidal()',
        share='model',
        relative=True,
    ),
)
class ReversePE(Encoding):
    """Counts positions from the end: the newest token is at position 0 whatever the length.

    `p_t = n - 1 - t`, n the number of real tokens of the row, or of the packed document. In a
    longer text only the oldest tokens get positions that were not trained. The next part of the
    chain encodes p; in the paper it is `sinusoidal()`. It is meant for encoders: every new token
    moves all others, so a decode cache is refused (run the encoder again). The tokens' own
    positions are ignored. Differs from the paper: counts from 0 (there is no public code, and the
    paper may start at 1). `reverse_pe_newest_first` reverses the list of encoder outputs for a
    decoder.

    Raises:
      ValueError: when a cache is made; at call, positions of several components.

    Reference: Rizzello, Böck, Joham, Utschick, arXiv 2302.00341.

    Example:
      >>> import posenc_jax as pj
      >>> tok = pj.Tokens.of(valid=[[False, True, True, True]])
      >>> pj.make('reverse_pe()').place(tok).pos[0, 1:].tolist()
      [2, 1, 0]
    """

    traits = frozenset({'moves_positions'})

    def place(self, tok, *, key=None):
        if tok.pos.ndim != 2:
            raise ValueError(
                'reverse_pe makes the positions itself and would lose the components of '
                f'{tok.pos.shape}: give positions '
                '[B, L], or write what reads them before it'
            )
        counted = dataclasses.replace(tok, pos=tok.rank)
        count, _ = current_length(counted, counted)
        return dataclasses.replace(tok, pos=reverse_pe_ids(tok.rank, count))
