"""DCA: dual chunk attention."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Num

from posenc_jax.base.products import heads_first
from posenc_jax.methods.extended_parts import check_part
from posenc_jax.methods.piecewise import piecewise_logits
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.bounds import CONTEXT, Count, Ge, Lt, Positive
from posenc_jax.protocol.checks import check_train_len
from posenc_jax.protocol.composite import Wrapper
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register


def dca_distance(
    q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S'], chunk: int, clip: int
) -> Num[Array, '#B T S']:
    """The relative position D_ij of query i and key j <= i in dual chunk attention.

    `i - j` for a key in the query's chunk, `min(i mod s + s, P) - j mod s` for one in the chunk
    before, `P - j mod s` for earlier chunks.

    Args:
      q_pos, k_pos: positions of queries and keys.
      chunk: s, the chunk length.
      clip: P, the largest relative position.

    Example:
      >>> import jax.numpy as jnp
      >>> dca_distance(jnp.array([[7]]), jnp.arange(8)[None], chunk=4, clip=6)[0, 0].tolist()
      [6, 5, 4, 3, 3, 2, 1, 0]
    """
    relation = _relation(q_pos, k_pos, chunk)
    intra, successive, inter = (p[:, :, None] for p in _query_positions(q_pos, chunk, clip))
    of_query = jnp.where(relation <= 0, intra, jnp.where(relation == 1, successive, inter))
    return of_query - (k_pos % chunk)[:, None, :]


def _relation(q_pos, k_pos, chunk):
    """By how many chunks a key lies before the query."""
    return (q_pos // chunk)[:, :, None] - (k_pos // chunk)[:, None, :]


def _query_positions(pos, chunk, clip):
    """Positions of a query for keys of its own chunk, the chunk before, and earlier chunks."""
    own = pos % chunk
    return own, jnp.minimum(own + chunk, clip), jnp.full((1, 1), clip)


CARD = Card(
    name='DCA',
    door='project, logits',
    example='dca(encoding=rope(), chunk=4, local=2)',
    share='model',
    causal_only=True,
)


@register('dca', kind='encoding', card=CARD)
@register('dca', kind='extension', card=CARD)
class DCA(Wrapper):
    """Limits relative positions to s + w: a rotary query has three positions, a key one.

    `logit_ij = R(D_ij) q_i . k_j / sqrt(H)`, `D_ij = i - j, min(i mod s + s, P) - j mod s, P - j
    mod s`, the three for keys of the query's chunk, of the chunk before and of earlier ones, with P
    = s + w. So D is at most P, within the trained length M if P <= M, and it is exact where `i - j
    <= w`. Keys are cached once, rotated at `j mod s`. Differs from the paper: P is s + w as in the
    released code; the text has s + w - 1.

    Args:
      encoding: the rotary encoding.
      chunk: s, in positions; default 3M/4 - M/8 with M = train_len, as released.
      local: w, the distance up to which D is exact, between 0 and s; default M/8.
      attention_factor: factor of cos and sin of queries and keys, so logits are multiplied by its
        square. The released code can set it to 0.05 ln(L/M) + 1 for a text of L tokens; compute it
        for the whole text and keep it.
      train_len: M, from the model.

    Raises:
      ValueError: an encoding that is not rotary, depends on the length or has other frequencies
        at its first positions; local above chunk, or a train_len without room for a chunk.

    Reference: An, Huang, Zhang, Gong, Qiu, Zhou, Kong, arXiv 2402.17463.
    """

    adds = frozenset({'forms_logits'})

    extends = (Rotary,)

    def __init__(
        self,
        encoding: Encoding = CONTEXT,
        chunk: Annotated[int, Ge(1), Lt(2**30)] | None = None,
        local: Count | None = None,
        attention_factor: Positive = 1.0,
        train_len: int = CONTEXT,
    ):
        if chunk is None or local is None:
            check_train_len('dca', train_len)
        given = f'chunk={chunk}, local={local}, {train_len=} given'
        origin = f'{given}; defaults are local = train_len / 8 and chunk = 3/4 train_len - local'
        local = train_len // 8 if local is None else local
        chunk = 3 * train_len // 4 - local if chunk is None else chunk
        if not 1 <= chunk < 2**30:  # so that 2 * chunk is a position of 32 bits
            raise ValueError(
                f'dca: chunk must be at least 1 and less than 2**30, got chunk={chunk} ({origin})'
            )
        if not 0 <= local <= chunk:
            raise ValueError(
                f'dca: local must be between 0 and chunk={chunk}, got {local} ({origin})'
            )
        self.encoding = check_part('dca', encoding, even=True)
        self.chunk, self.clip, self.attention_factor = chunk, chunk + local, attention_factor

    def project(self, q, k, v, tq, tk, x=None):
        of_query = _query_positions(tq.pos, self.chunk, self.clip)
        intra, successive, inter = (self.encoding.rotate(q, pos) for pos in of_query)
        k = self.encoding.rotate(k, tk.pos % self.chunk)
        return intra, k, v, tq.with_feats(dca=(successive, inter)), tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        relation = jnp.clip(_relation(tq.pos, tk.pos, self.chunk), 0, 2).astype(jnp.int32)
        s = piecewise_logits(relation, (q, *map(heads_first, tq.feats['dca'])), (k,), seen)
        return s * self.attention_factor**2, carry
