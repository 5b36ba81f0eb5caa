"""The current length, for frequency rules that depend on it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num

from posenc_jax.core.tokens import Tokens


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
    pos, segment = jnp.broadcast_arrays(pos, tk.segment)
    starts = jnp.concatenate(
        [jnp.zeros_like(segment[:, :1], bool), segment[:, 1:] != segment[:, :-1]], axis=1
    )
    document = jnp.cumsum(starts, axis=1)
    longest = jax.vmap(lambda p, d: jax.ops.segment_max(p, d, num_segments=tk.length))(
        pos, document
    )
    length = jnp.take_along_axis(longest, document, axis=1) + 1
    return length, length
