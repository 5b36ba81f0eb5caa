"""STRING: positions trained well stand in for positions trained rarely."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Num

from posenc_jax.core.checks import check_train_len
from posenc_jax.core.composite import Wrapper
from posenc_jax.core.encoding import Encoding
from posenc_jax.core.families import signed_distance
from posenc_jax.core.products import heads_first
from posenc_jax.core.registry import Card, Promises, register
from posenc_jax.core.spec import CONTEXT
from posenc_jax.extension.parts import check_part
from posenc_jax.extension.piecewise import piecewise_logits
from posenc_jax.rotation.rope import Rotary


def string_distance(
    q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S'], shift: int, local: int
) -> Num[Array, '#B T S']:
    """The relative position D_ij of query i and key j: `i - j` below S, `i - j - S + W` from S on.

    Example:
      >>> string_distance(jnp.array([[9]]), jnp.arange(10)[None], shift=4, local=2)[0, 0].tolist()
      [7, 6, 5, 4, 3, 2, 3, 2, 1, 0]
    """
    gap = signed_distance(q_pos, k_pos)
    return jnp.where(gap < shift, gap, gap - shift + local)


CARD = Card(
    name='STRING',
    title='Why Does the Effective Context Length of LLMs Fall Short?',
    arxiv='2410.18745',
    door='project, match',
    equation='logit_ij = R(D_ij) q_i . k_j / sqrt(H); D = i-j if i-j < S, else i-j-S+W',
    source='HKUNLP/STRING',
    authors='An, Chenxin and Zhang, Jun and Zhong, Ming and Li, Lei and Gong, Shansan and Luo, '
    'Yao and Xu, Jingjing and '
    'Kong, Lingpeng',
    year=2024,
    example='string(encoding=rope(), shift=4, local=2)',
    share='model',
    causal_only=True,
    promises=Promises(relative=True),
)


@register('string', kind='encoding', card=CARD)
@register(
    'string', kind='extension', card=dataclasses.replace(CARD, example='string(shift=4, local=2)')
)
class STRING(Wrapper):
    """Moves keys that are S or more away nearer by S - W: the largest distances, rarely trained,
    are not used.

    `D_ij = i - j` below S and `i - j - S + W` from S on, so distances W .. S-1 occur twice and the
    largest of L tokens is `L - 1 - S + W`: also M + S - W tokens stay within a trained length of M.
    Keys are cached once, rotated at their own place; a query is rotated twice. Differs from the
    paper: the formula, and what the released code does when it decodes; its prefill counts keys at
    distance S twice, once at S and once at W.

    Args:
      encoding: the rotary encoding.
      shift: S, the first distance that is shortened; default train_len / 3, the paper recommends
        0.25 to 0.4 of it.
      local: W, what distance S becomes, at most S (which changes nothing); default 128 as in the
        paper, and S / 2 in short models, where that is less (our convention).
      attention_factor: multiplies cos and sin, so logits by its square; the released code has 0.1
        ln 2 + 1 = 1.0693.
      train_len: M, from the model.

    Raises:
      ValueError: an encoding that is not rotary, depends on the length or treats first positions
        apart; shift below 1; local outside 0 .. shift.

    Reference: An, Zhang, Zhong, Li, Gong, Luo, Xu, Kong, arXiv 2410.18745.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('string(encoding=rope())', head_dim=8, train_len=768)
      >>> part.shift, part.local
      (256, 128)
    """

    extends = (Rotary,)

    def __init__(
        self,
        encoding: Encoding = CONTEXT,
        shift: int | None = None,
        local: int | None = None,
        attention_factor: float = 1.0,
        train_len: int = CONTEXT,
    ):
        if shift is None:
            shift = check_train_len('string', train_len) // 3
        if shift < 1:
            raise ValueError(
                f'string: shift is a distance of at least 1, got shift={shift} '
                f'(train_len={train_len})'
            )
        local = min(128, shift // 2) if local is None else local
        if not 0 <= local <= shift:
            raise ValueError(f'string: local must be between 0 and shift={shift}, got {local}')
        if not attention_factor > 0:
            raise ValueError(f'string: attention_factor must be positive, got {attention_factor}')
        self.encoding = check_part('string', encoding, even=True)
        self.shift, self.local, self.attention_factor = shift, local, attention_factor

    def project(self, q, k, v, tq, tk, x=None):
        tq_far = tq.with_feats(string=self.encoding.rotate(q, tq.pos - self.shift + self.local))
        return self.encoding.rotate(q, tq.pos), self.encoding.rotate(k, tk.pos), v, tq_far, tk

    def match(self, q, k, tq, tk, seen, carry):
        far = (signed_distance(tq.pos, tk.pos) >= self.shift).astype(jnp.int32)
        s = piecewise_logits(far, (q, heads_first(tq.feats['string'])), (k,), seen)
        return s * self.attention_factor**2, carry
