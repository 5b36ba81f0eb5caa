"""The current length, for frequency rules that depend on it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Num

from posenc_jax.protocol.tokens import Tokens


def current_length(tq: Tokens, tk: Tokens) -> tuple[Num[Array, '#B #T'], Num[Array, '#B #S']]:
    """The current length for each query and for each key: the largest valid position of a key in
    the row, or in the packed document, plus one.

    Without segments it is one number per row, [#B, 1]; with segments, one number per token.

    Raises:
      ValueError: positions with several components; packed documents where queries and keys differ
        in number, since they must be the same tokens.

    Example:
      >>> import posenc_jax as pj
      >>> t = pj.Tokens.of(segment=[[0, 0, 0, 1, 1]])
      >>> current_length(t, t)[0].tolist()
      [[3, 3, 3, 2, 2]]
    """
    if tk.pos.ndim != 2:
        raise ValueError(
            f'a current length needs one position per token, got positions of shape {tk.pos.shape}'
        )
    pos = tk.pos if tk.valid is None else jnp.where(tk.valid, tk.pos, -1)
    if tk.segment is None:
        length = pos.max(axis=1, keepdims=True) + 1
        return length, length
    if tq.length != tk.length:
        raise ValueError(
            'the current length of packed documents is defined where queries and keys are the '
            'same tokens, '
            f'got {tq.length} queries and {tk.length} keys'
        )
    length = document_max(pos, tk.segment) + 1
    return length, length


def document_max(
    values: Num[Array, '#B L *P'], segment: Int[Array, '#B L']
) -> Num[Array, '#B L *P']:
    """For every token, the largest value of its packed document.

    Args:
      values: a number for each token, or several.
      segment: equal within a document; documents are contiguous.

    Example:
      >>> document_max(jnp.array([[3, 1, 2]]), jnp.array([[0, 0, 1]])).tolist()
      [[3, 3, 2]]
    """
    rows = max(values.shape[0], segment.shape[0])
    values = jnp.broadcast_to(values, (rows, *values.shape[1:]))
    segment = jnp.broadcast_to(segment, (rows, segment.shape[1]))
    starts = jnp.concatenate(
        [jnp.zeros_like(segment[:, :1], bool), segment[:, 1:] != segment[:, :-1]], axis=1
    )
    document = jnp.cumsum(starts, axis=1)
    largest = jax.vmap(lambda v, d: jax.ops.segment_max(v, d, num_segments=segment.shape[1])[d])
    return largest(values, document)
