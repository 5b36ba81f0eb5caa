"""ReRoPE and leaky ReRoPE: `self_extend` without groups, and a factor on the queries."""

import dataclasses
from typing import Annotated

from jaxtyping import Array, Num

from posenc_jax.methods.extended_parts import check_part
from posenc_jax.methods.log_length import log_length_logn_factor, log_length_queries
from posenc_jax.methods.self_extend import SelfExtend, self_extend_distance
from posenc_jax.protocol.bounds import CONTEXT, Ge, Le, Meaning
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register

Window = Annotated[int, Ge(1), Le('train_len')]
Trained = Annotated[int, Ge(2), Meaning('the trained length in tokens')]
Divisor = Annotated[float, Ge(1), Meaning('by which far distances are divided')]


def rerope_distance(
    q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S'], local: int
) -> Num[Array, '#B T S']:
    """The relative position D_ij: `min(i - j, w)`. The queries are multiplied by
    `log_length_logn_factor`.

    Args:
      q_pos, k_pos: positions of queries and keys.
      local: w, the distance of all far keys.
    """
    return self_extend_distance(q_pos, k_pos, None, local)


def leaky_rerope_distance(
    q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S'], factor: float, local: int
) -> Num[Array, '#B T S']:
    """The relative position D_ij: `i - j` where `i - j < w`, else `w + (i - j - w) / s`. The
    queries are multiplied by `log_length_logn_factor`.

    Args:
      q_pos, k_pos: positions of queries and keys.
      factor: s, by which far distances are divided.
      local: w, the first distance that is not exact.

    Example:
      >>> import jax.numpy as jnp
      >>> q_pos, k_pos = jnp.array([[11]]), jnp.arange(12)[None]
      >>> leaky_rerope_distance(q_pos, k_pos, factor=2.0, local=4)[0, 0, :5].tolist()
      [7.5, 7.0, 6.5, 6.0, 5.5]
    """
    return self_extend_distance(q_pos, k_pos, factor, local, floor=False)


class _WithLogn(SelfExtend):
    """Self-Extend whose queries are multiplied by the factor of `log_length`."""

    def _begin(self, key, encoding, group, local, floor, logn, train_len):
        check_part(key, encoding, even=True)
        local = max(train_len // 4, 1) if local is None else local
        SelfExtend.__init__(self, encoding, group, local, floor, train_len)
        self.logn, self.train_len = logn, train_len

    def project(self, q, k, v, tq, tk, x=None):
        if self.logn:  # rotations are linear, so it does not matter which comes first
            q = log_length_queries(q, log_length_logn_factor(tq.rank + 1, self.train_len))
        return super().project(q, k, v, tq, tk, x)


CARD = Card(
    name='ReRoPE',
    door='project, logits',
    example='rerope(encoding=rope(), local=4)',
    share='model',
    causal_only=True,
    relative=True,
)


@register('rerope', kind='encoding', card=CARD)
@register('rerope', kind='extension', card=CARD)
class ReRoPE(_WithLogn):
    """Puts all keys that are w or more away at the rotary distance w, at any length.

    `logit_ij = lambda_i R(min(i - j, w)) q_i . k_j / sqrt(H)`, `lambda_i = max(1, ln(i + 1) / ln
    L)`. It is `self_extend(group=None)` with the factor `log_length()`; i in the factor is the rank
    of the token in its document. Up to w tokens it is the given encoding. Differs from the released
    code: keys are cached rotated, in two forms, where that keeps them unrotated; the logits are the
    same.

    Args:
      encoding: the rotary encoding.
      local: w, the distance of all far keys, at most L; default a quarter of train_len. The
        released code has 512 of 4096, its figures of Llama 2 13B are with 1024 of 4096.
      logn: whether queries are multiplied by lambda.
      train_len: L, from the model.

    Raises:
      ValueError: an encoding that is not rotary, depends on the length or has other frequencies at
        its first positions; local below 1 or above train_len; a train_len of 1.

    Reference: Su, kexue.fm/archives/9708 and github.com/bojone/rerope.

    Example:
      >>> import posenc_jax as pj
      >>> pj.extend('rope() | causal()', 'rerope(local=32)', head_dim=8, train_len=64)
      rerope(encoding=rope(), local=32) | causal()
    """

    def __init__(
        self,
        encoding: Encoding = CONTEXT,
        local: Window | None = None,
        logn: bool = True,
        train_len: Trained = CONTEXT,
    ):
        self._begin('rerope', encoding, None, local, True, logn, train_len)


LEAKY_CARD = dataclasses.replace(
    CARD, name='leaky ReRoPE', example='leaky_rerope(encoding=rope(), factor=2.0, local=4)'
)


@register('leaky_rerope', kind='encoding', card=LEAKY_CARD)
@register('leaky_rerope', kind='extension', card=LEAKY_CARD)
class LeakyReRoPE(_WithLogn):
    """Divides the rotary distance of keys beyond a window by s.

    `logit_ij = lambda_i R(D_ij) q_i . k_j / sqrt(H)`, `D_ij = i - j if i - j < w, else w + (i - j -
    w) / s`, `lambda_i = max(1, ln(i + 1) / ln L)`. It is `self_extend(group=s, floor=False)` with
    the factor `log_length()`. As s grows it becomes `rerope`. Differs from the released code: as
    for `rerope`.

    Args:
      encoding: the rotary encoding.
      factor: s, at least 1; 16 in the released code.
      local: w, the first distance that is not exact, at most L; default a quarter of train_len.
      logn: whether queries are multiplied by lambda.
      train_len: L, from the model.

    Raises:
      ValueError: as for `rerope`; a factor below 1.

    Reference: Su, kexue.fm/archives/9708 and github.com/bojone/rerope.
    """

    def __init__(
        self,
        encoding: Encoding = CONTEXT,
        factor: Divisor = 16.0,
        local: Window | None = None,
        logn: bool = True,
        train_len: Trained = CONTEXT,
    ):
        self._begin('leaky_rerope', encoding, factor, local, False, logn, train_len)
