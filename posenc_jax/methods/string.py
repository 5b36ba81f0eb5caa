"""STRING: small relative positions, trained often, replace the largest ones, trained rarely."""

import jax.numpy as jnp
from jaxtyping import Array, Num

from posenc_jax.base.products import heads_first
from posenc_jax.methods.extended_parts import check_part
from posenc_jax.methods.piecewise import piecewise_logits
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.bounds import CONTEXT, Count, Positive, Size
from posenc_jax.protocol.checks import check_train_len
from posenc_jax.protocol.composite import Wrapper
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.families import signed_distance
from posenc_jax.protocol.registry import Card, register


def string_distance(
    q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S'], shift: int, local: int
) -> Num[Array, '#B T S']:
    """The relative position D_ij of query i and key j: `i - j` below S, else `i - j - S + W`.

    Args:
      q_pos, k_pos: positions of queries and keys.
      shift, local: S and W.

    Example:
      >>> string_distance(jnp.array([[9]]), jnp.arange(10)[None], shift=4, local=2)[0, 0].tolist()
      [7, 6, 5, 4, 3, 2, 3, 2, 1, 0]
    """
    gap = signed_distance(q_pos, k_pos)
    return jnp.where(gap < shift, gap, gap - shift + local)


CARD = Card(
    name='STRING',
    door='project, logits',
    example='string(encoding=rope(), shift=4, local=2)',
    use_when=(
        'You have a trained rotary model whose largest distances were rarely trained, '
        'and read within its trained length; the measured claim is open.'
    ),
    share='model',
    causal_only=True,
    relative=True,
)


@register('string', kind='encoding', card=CARD)
@register('string', kind='extension', card=CARD)
class STRING(Wrapper):
    """Shortens the distance of keys that are S or more away by S - W, so that the largest
    distances, which are rarely trained, are not used; acts on rotary queries.

    `logit_ij = R(D_ij) q_i . k_j / sqrt(H)`, `D_ij = i - j if i - j < S, else i - j - S + W`. So
    distances W .. S-1 occur twice, and the largest distance of L tokens is `L - 1 - S + W`. Even M
    + S - W tokens stay within the trained length M. Keys are cached once, rotated at their own
    position; a query is rotated twice. Differs from the paper: nothing in the formula, which is
    also that of the released decoding. The released prefill counts keys at distance S twice, once
    at S and once at W.

    Args:
      encoding: the rotary encoding.
      shift: S, the first distance that is shortened; default train_len / 3. The paper recommends
        0.25 to 0.4 of train_len.
      local: W, the new value of distance S, at most S; with W = S nothing changes. Default 128 as
        in the paper, or S / 2 if that is less (our convention).
      attention_factor: factor of cos and sin of queries and keys, so logits are multiplied by its
        square. The released code has 0.1 ln 2 + 1 = 1.0693.
      train_len: M, from the model.

    Raises:
      ValueError: an encoding that is not rotary, depends on the length or has other frequencies
        at its first positions; local above shift, or a train_len without room for a shift.

    Reference: An, Zhang, Zhong, Li, Gong, Luo, Xu, Kong, arXiv 2410.18745.
    """

    adds = frozenset({'forms_logits'})

    extends = (Rotary,)

    def __init__(
        self,
        encoding: Encoding = CONTEXT,
        shift: Size | None = None,
        local: Count | None = None,
        attention_factor: Positive = 1.0,
        train_len: int = CONTEXT,
    ):
        if shift is None:
            shift = check_train_len('string', train_len) // 3
        if shift < 1:
            raise ValueError(f'string: shift must be at least 1, got {shift} ({train_len=})')
        local = min(128, shift // 2) if local is None else local
        if not 0 <= local <= shift:
            raise ValueError(f'string: local must be between 0 and shift={shift}, got {local}')
        self.encoding = check_part('string', encoding, even=True)
        self.shift, self.local, self.attention_factor = shift, local, attention_factor

    def project(self, q, k, v, tq, tk, x=None):
        tq_far = tq.with_feats(string=self.encoding.rotate(q, tq.pos - self.shift + self.local))
        return self.encoding.rotate(q, tq.pos), self.encoding.rotate(k, tk.pos), v, tq_far, tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        far = (signed_distance(tq.pos, tk.pos) >= self.shift).astype(jnp.int32)
        s = piecewise_logits(far, (q, heads_first(tq.feats['string'])), (k,), seen)
        return s * self.attention_factor**2, carry
