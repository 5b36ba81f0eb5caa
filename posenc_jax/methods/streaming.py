"""StreamingLLM: positions of tokens within the cache."""

import dataclasses

import jax.numpy as jnp

from posenc_jax.language.spec import CONTEXT
from posenc_jax.methods.extended_parts import check_part
from posenc_jax.protocol.composite import Wrapper
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, Promises, register
from posenc_jax.protocol.tokens import Tokens


def streaming_positions(tq: Tokens, tk: Tokens) -> tuple[Tokens, Tokens]:
    """The tokens with positions as if the keys that were dropped had never been there.

    A key moves down by the number of tokens that are missing in front of it, and queries move with
    the last key. Packed documents stay, since none of their tokens can be dropped.

    Args:
      tq: tokens of the last queries.
      tk: tokens of the keys that are left, in their order. `rank` counts the dropped ones too.

    Example:
      >>> left = Tokens.of(index=jnp.array([[0, 5, 6]]))
      >>> [tok.pos.tolist() for tok in streaming_positions(left.slice(2, 1), left)]
      [[[2]], [[0, 1, 2]]]
    """
    if tk.segment is not None:
        return tq, tk
    valid = jnp.ones_like(tk.rank, bool) if tk.valid is None else tk.valid
    missing = jnp.where(valid, tk.rank + 1 - jnp.cumsum(valid, axis=1), 0)
    last = missing.max(1, keepdims=True)
    return (
        dataclasses.replace(tq, pos=tq.pos - last.astype(tq.pos.dtype)),
        dataclasses.replace(tk, pos=tk.pos - missing.astype(tk.pos.dtype)),
    )


CARD = Card(
    name='StreamingLLM',
    door='project',
    example='streaming(encoding=rope())',
    share='model',
    promises=Promises(relative=True, cached='raw', fused=True),
)


@register('streaming', kind='encoding', card=CARD)
@register('streaming', kind='extension', card=CARD)
class Streaming(Wrapper):
    """Counts positions within the cache, from which tokens may have been dropped.

    `p_j = pos_j - missing_j`, the number of tokens that are missing in front of token j. Where the
    cache has all tokens, nothing changes. `StreamingCache` (posenc_jax.lab.decoding.streaming)
    drops the tokens between the first few, which are attention sinks, and the last ones. So
    positions never exceed the size of the cache, and a stream of any length stays within the
    trained positions. Keys are cached as projected and encoded again at every step, since their
    positions move.

    Hidden states of kept tokens were computed when others were still there. So decoding with
    `StreamingCache` is no pass over the text with a mask. Differs from the paper: nothing.

    Args:
      encoding: the rotary encoding, or a relative bias such as `alibi()`.

    Raises:
      ValueError: another encoding.

    Reference: Xiao, Tian, Chen, Han, Lewis, arXiv 2309.17453.
    """

    adds = frozenset({'follows_length'})

    def __init__(self, encoding: Encoding = CONTEXT):
        self.encoding = check_part('streaming', encoding, bias=True)

    def project(self, q, k, v, tq, tk, x=None):
        tq, tk = streaming_positions(tq, tk)
        return self.encoding.project(q, k, v, tq, tk, x)
