"""The tiles of attention that an encoding that prunes computes, to count them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from posenc_jax.attention.sweep import ended_queries
from posenc_jax.attention.tiles import Blocks, may_meet, pair_logits
from posenc_jax.protocol.capabilities import first_carry
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Tokens, bounds


def tiles_needed(
    encoding: Encoding,
    q: Float[Array, 'B L N H'],
    k: Float[Array, 'B S K H'],
    tq: Tokens,
    tk: Tokens,
    block: int,
) -> Bool[Array, 'B N rows columns']:
    """For each row of the batch and each head, the tiles that hold a pair which the mask may show
    and a query which the encoding does not say to be ended. A kernel computes these tiles; the
    blocked form computes a tile if one head of one row needs it.

    Args:
      encoding: an encoding with the capability `Prunes`, or a chain with one.
      q, k, tq, tk: as `attend` gets them.
      block: queries and keys per tile; it divides both lengths.

    Raises:
      ValueError: an encoding that does not prune, or a block that does not divide the lengths.
    """
    if not encoding.opens('ended'):
        raise ValueError(f'tiles_needed counts what is left out, and {encoding} leaves out nothing')
    if tq.length % block or tk.length % block:
        raise ValueError(
            f'tiles_needed: block={block} must divide {tq.length} queries and {tk.length} keys'
        )
    cut, columns = Blocks(block, 1), tk.length // block

    def of_queries(i):
        q_i, tq_i = cut.read(q, i), cut.tokens(tq, i)

        def meet(carry, j):
            tk_j = cut.tokens(tk, j)
            seen = may_meet(encoding, bounds(tq_i), tk_j)
            ended = ended_queries(encoding, tq_i, carry).all(-1)
            _, behind, _ = pair_logits(encoding, q_i, cut.read(k, j), tq_i, tk_j, carry)
            carry = jax.tree.map(lambda a, b: jnp.where(seen, a, b), behind, carry)
            return carry, seen & ~ended

        carry = first_carry(encoding, q_i, tq_i)
        return jax.lax.scan(meet, carry, jnp.arange(columns), reverse=True)[1]

    needed = jax.lax.map(of_queries, jnp.arange(tq.length // block))
    return needed.transpose(2, 3, 0, 1)
