"""ALiBi: attention with linear biases."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from posenc_jax.attention.distances import float_distance
from posenc_jax.protocol.bounds import CONTEXT, PerHead
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.families import Bias, alibi_slopes, signed_distance
from posenc_jax.protocol.registry import Card, register

Variant = Literal['symmetric', 'half', 'asymmetric', 'offset']
VARIANTS = ('symmetric', 'half', 'asymmetric', 'offset')
_LATER_OFFSET = 0.5  # subtracted from the distance of later keys by 'offset', in tokens


def alibi_bias(
    slopes: Float[Array, 'N'],
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
    *,
    later: Float[Array, 'N'] | None = None,
    offset: float = 0.0,
) -> Float[Array, '#B N T S']:
    """The ALiBi bias, float32.

    It is `-m_h |p_i - p_j|`, and for keys ahead of the query `-m'_h (|p_i - p_j| - offset)`.

    Args:
      slopes: m_h.
      later: m'_h, the slopes for keys ahead of the query; None uses m_h for them too.
      offset: subtracted from the distance of keys ahead of the query, in positions.

    Example:
      >>> alibi_bias(jnp.array([0.5]), jnp.array([[2]]), jnp.array([[0, 1, 2, 3]])).tolist()
      [[[[-1.0, -0.5, -0.0, -0.5]]]]
    """
    apart = float_distance(q_pos, k_pos)
    distance = jnp.abs(apart)
    slopes = slopes.astype(jnp.float32)[:, None, None]
    if offset:
        distance = distance - jnp.where(apart < 0, jnp.float32(offset), 0.0)
    if later is not None:
        slopes = jnp.where((apart < 0)[:, None], later.astype(jnp.float32)[:, None, None], slopes)
    return -slopes * distance[:, None]


def alibi_half(
    ahead: Bool[Array, 'N'], q_index: Int[Array, '#B T'], k_index: Int[Array, '#B S']
) -> Bool[Array, '#B N T S']:
    """The mask of heads that look one way only: keys `j >= i` where `ahead`, else `j <= i`."""
    distance = signed_distance(q_index, k_index)[:, None]
    return jnp.where(ahead[:, None, None], distance <= 0, distance >= 0)


@register(
    'alibi',
    kind='encoding',
    card=Card(name='ALiBi', example='alibi()', share='model', relative=True),
)
class ALiBi(Bias):
    """Penalises distance linearly, with one slope per head; acts on the logits.

    `logit_ij = q_i . k_j / sqrt(H) - m_h |i - j|`, `m_h = 2^(-8h/N)`. Differs from the paper:
    nothing in the causal case (the official code adds `m_h j` instead, which gives the same
    probabilities). The paper treats causal attention only. `variant` chooses one of the published
    extensions to attention that sees later keys:

    'symmetric' uses the same formula for later keys. 'offset' uses `-m_h (|i - j| - 1/2)` for
    later keys, so that left and right differ. 'asymmetric' trains two slopes per head, one for
    earlier and one for later keys; both start at m_h. In 'half' the first N/2 heads see `j <= i`
    and the last N/2 heads see `j >= i`; each half has the slopes of N/2 heads. Under a causal mask
    'offset' and 'asymmetric' are allowed, but no later key is left for them to act on, and they
    treat earlier keys as 'symmetric' does.

    Args:
      slopes: m_h, one per head, in place of the paper's; the initial values if they are trained.
      variant: 'symmetric', 'half', 'asymmetric' or 'offset'.
      learn_slopes: trains `ln m_h`; 'asymmetric' always does. The paper found trained slopes to
        extrapolate worse.
      heads: N, from the model.

    Raises:
      ValueError: 'half' of an odd number of heads, or chained with a mask that hides later keys.

    Reference: Press, Smith, Lewis, arXiv 2108.12409.
    """

    def __init__(
        self,
        slopes: PerHead | None = None,
        variant: Variant = 'symmetric',
        learn_slopes: bool = False,
        heads: int = CONTEXT,
    ):
        self.variant = variant
        self.learns = learn_slopes or variant == 'asymmetric'
        if variant == 'half' and heads % 2:
            raise ValueError(
                f"alibi(variant='half') needs an even number of heads, got {heads}; the nearest "
                f'is {heads + 1}'
            )
        usual = np.tile(alibi_slopes(heads // 2), 2) if variant == 'half' else alibi_slopes(heads)
        given = usual if slopes is None else np.asarray(slopes)
        if not self.learns:
            self.slopes = Constant(jnp.asarray(given, jnp.float32), axes=('heads',))
        else:
            of_sides, axes = (given, ('heads',))
            if variant == 'asymmetric':
                of_sides, axes = [given, given], (None, 'heads')
            self.log_slopes = nnx.Param(jnp.asarray(np.log(of_sides), jnp.float32), axes=axes)
        if variant == 'half':
            self.ahead = Constant(jnp.arange(heads) >= heads // 2, axes=('heads',))

    def bias(self, q_pos, k_pos):
        slopes, later = jnp.exp(self.log_slopes[...]) if self.learns else self.slopes[...], None
        if self.variant == 'asymmetric':
            slopes, later = slopes
        offset = _LATER_OFFSET if self.variant == 'offset' else 0.0
        return alibi_bias(slopes, q_pos, k_pos, later=later, offset=offset)


class HalfALiBi(ALiBi, where=lambda given: given['variant'] == 'half'):
    """ALiBi in which each half of the heads looks one way."""

    traits = frozenset({'sees_later'})

    def mask(self, tq, tk):
        return alibi_half(self.ahead[...], tq.index, tk.index)
