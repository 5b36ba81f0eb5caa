"""Self-Extend, which groups the positions of far keys; ReRoPE, which puts all far keys at one
distance; and leaky ReRoPE, which divides their distances without rounding.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from posenc_jax.base.phases import TWO_PI, phase
from posenc_jax.base.products import heads_first
from posenc_jax.methods.extended_parts import check_part
from posenc_jax.methods.piecewise import piecewise_logits
from posenc_jax.methods.rope import Rotary, rotate
from posenc_jax.protocol.bounds import CONTEXT, Size
from posenc_jax.protocol.checks import check_train_len
from posenc_jax.protocol.composite import Wrapper
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.families import signed_distance
from posenc_jax.protocol.registry import Card, register


def self_extend_distance(
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
    group: float | None,
    local: int,
    *,
    floor: bool = True,
) -> Num[Array, '#B T S']:
    """The relative position D_ij: `i - j` where `i - j < w`, else `i//G - j//G + w - w/G`, or
    without `floor`, `w + (i - j - w) / G`.

    Args:
      q_pos, k_pos: positions of queries and keys.
      group: G; None is infinite, with D_ij = `min(i - j, w)`.
      local: w, the first distance that is not exact.
      floor: whether far positions are rounded down to whole groups.

    Example:
      >>> q_pos, k_pos = jnp.array([[11]]), jnp.arange(12)[None]
      >>> self_extend_distance(q_pos, k_pos, group=2, local=4)[0, 0].tolist()
      [7, 7, 6, 6, 5, 5, 4, 4, 3, 2, 1, 0]
      >>> self_extend_distance(q_pos, k_pos, group=None, local=4)[0, 0].tolist()
      [4, 4, 4, 4, 4, 4, 4, 4, 3, 2, 1, 0]
    """
    gap = signed_distance(q_pos, k_pos)
    if group is None:
        return jnp.minimum(gap, local)
    far = signed_distance(q_pos // group, k_pos // group) if floor else gap / group
    offset = _offset(group, local)
    return jnp.where(gap < local, gap, far + (int(offset) if offset.is_integer() else offset))


def self_extend_capacity(train_len: int, group: float | None, local: int) -> float:
    """`(M - w) G + w`, the largest number of tokens whose relative positions all stay below the
    trained length M; infinite for an infinite group.
    """
    return math.inf if group is None else (train_len - local) * group + local


def _offset(group, local) -> float:
    """The term `w - w/G`, with which far distances continue the near ones without a gap."""
    return float(local) if group is None else local - local / group


CARD = Card(
    name='Self-Extend',
    door='project, logits',
    example='self_extend(encoding=rope(), group=2, local=4)',
    share='model',
    causal_only=True,
)


@register('self_extend', kind='encoding', card=CARD)
@register('self_extend', kind='extension', card=CARD)
class SelfExtend(Wrapper):
    """Keeps exact distances within a window and divides rotary positions by G beyond it.

    `logit_ij = R(D_ij) q_i . k_j / sqrt(H)`, `D_ij = i - j if i - j < w, else i//G - j//G + w -
    w/G`. So (M - w) G + w tokens (`self_extend_capacity`) stay within the trained length M. Longer
    texts are accepted, but the relative positions of their farthest pairs are outside the trained
    range. `group=None` is ReRoPE, `D = min(i - j, w)` at any length. `floor=False` is leaky ReRoPE,
    `D = w + (i - j - w) / G` beyond the window. Queries and keys are rotated twice. The second keys
    are cached as a feature, which makes the cache half as large again. Differs from the paper: w -
    w/G is not rounded, as in the released code. It is whole if G divides w; this is preferable, but
    not required, since released settings have other values. The released code leaves w - w/G out
    while no query is beyond w, which has no effect. Its option to scale the query by the logarithm
    of the position, off by default, is left out.

    Args:
      encoding: the rotary encoding.
      group: G, at least 1; 1 changes nothing. An integer unless `floor=False`; 4 to 8 in the paper.
        None is infinite.
      local: w, the first distance that is not exact; default train_len / 4, as 1024 of 4096 in the
        paper.
      floor: whether far positions are rounded down to whole groups.
      train_len: M, from the model.

    Raises:
      ValueError: an encoding that is not rotary, depends on the length or has other frequencies at
        its first positions; a group below 1, or with `floor` not whole or of 2**31 or
        more; an infinite group without `floor`; local below 1 or beyond train_len.

    Reference: Jin, Han, Yang, Jiang, Liu, Chang, Chen, Hu, arXiv 2401.01325; ReRoPE: Su,
    github.com/bojone/rerope.
    """

    adds = frozenset({'forms_logits'})

    extends = (Rotary,)

    def __init__(
        self,
        encoding: Encoding = CONTEXT,
        group: int | float | None = 8,
        local: Size | None = None,
        floor: bool = True,
        train_len: int = CONTEXT,
    ):
        local = check_train_len('self_extend', train_len) // 4 if local is None else local
        if local < 1:
            raise ValueError(f'self_extend: local must be at least 1, got {local} ({train_len=})')
        if train_len is not None and local > train_len:
            raise ValueError(
                f'self_extend: local must be at most the trained length of {train_len}, got '
                f'local={local}'
            )
        if group is None and not floor:
            raise ValueError(
                'self_extend: floor=False needs a finite group, got group=None; for ReRoPE use '
                'floor=True'
            )
        if group is not None and not group >= 1:
            raise ValueError(f'self_extend: group must be at least 1, got group={group}')
        if group is not None and floor and group != int(group):
            raise ValueError(
                f'self_extend: group must be an integer with floor=True, got group={group}; the '
                f'nearest is {round(group)}, or use floor=False'
            )
        if group is not None and floor and group >= 2**31:
            raise ValueError(
                f'self_extend: group must be below 2**31 with floor=True, got group={group}; an '
                'infinite one is group=None'
            )
        self.encoding = check_part('self_extend', encoding, even=True)
        self.group = int(group) if group is not None and floor else group
        self.local, self.floor = local, floor

    def project(self, q, k, v, tq, tk, x=None):
        near_q, near_k = self.encoding.rotate(q, tq.pos), self.encoding.rotate(k, tk.pos)
        far_q, far_k = (
            self._far(q, tq.pos, _offset(self.group, self.local)),
            self._far(k, tk.pos, 0.0),
        )
        return near_q, near_k, v, tq.with_feats(self_extend=far_q), tk.with_feats(self_extend=far_k)

    def logits(self, s, q, k, tq, tk, seen, carry):
        far = (signed_distance(tq.pos, tk.pos) >= self.local).astype(jnp.int32)
        far_q, far_k = heads_first(tq.feats['self_extend']), heads_first(tk.feats['self_extend'])
        return piecewise_logits(far, (q, far_q), (k, far_k), seen), carry

    def _far(self, x, pos, offset):
        """`x` rotated to its grouped position plus `offset`. The sum is formed with angles, which
        are exact also where the position is a fraction.
        """
        inv_freq, temperature = self.encoding.frequencies()
        if self.group is None:
            angles = phase(jnp.zeros_like(pos), inv_freq)
        elif self.floor:
            angles = phase(pos // self.group, inv_freq)
        else:
            angles = phase(pos, inv_freq / self.group)
        angles = angles + np.asarray(offset * inv_freq % TWO_PI, np.float32)
        return rotate(x, angles[..., None, :], layout=self.encoding.layout, scale=temperature)
