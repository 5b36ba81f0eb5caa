"""NTK-RoPE-mixed: rotary frequencies that are divided more, the lower they are."""

import dataclasses
import math

import numpy as np

from posenc_jax.methods.frequency_rule import STATIC, FrequencyRule
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.bounds import Factor, NonNegative
from posenc_jax.protocol.checks import check_factor
from posenc_jax.protocol.errors import check_number
from posenc_jax.protocol.registry import Card, register


def ntk_rope_mixed_frequencies(
    rotary_dim: int, base: float, factor: float, *, power: float = 0.75
) -> np.ndarray:
    """`theta_t exp(-a (t + 1)^p)`, float64, with `a = ln k / (D/2)^p`: the last plane is divided by
    exactly k, and all others by less.

    Args:
      rotary_dim, base: D, and the base of `theta_t = base^(-2t/D)`.
      factor: k, at least 1.
      power: p, at least 0; with 0 all planes are divided by k.

    Raises:
      ValueError: a factor below 1, a negative power.
    """
    check_factor('ntk_rope_mixed', factor)
    check_number('ntk_rope_mixed: power', power, least=0)
    order = np.arange(1, rotary_dim // 2 + 1)
    # The share of ln k is formed from a quotient, so that the last one is exactly 1.
    share = (order / (rotary_dim // 2)) ** power
    return rope_frequencies(rotary_dim, base) * np.exp(-math.log(factor) * share)


@register(
    'ntk_rope_mixed',
    kind='frequencies',
    card=Card(
        **STATIC,
        name='NTK-RoPE-mixed',
        example='rope(freqs=ntk_rope_mixed(factor=4.0))',
        use_when=(
            'You extend a rotary model without tuning; to compare with the NTK-aware '
            'rule, since a measured claim is partly contrary.'
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class NTKRoPEMixed(FrequencyRule):
    """Divides the frequency of plane t by a factor that grows with t up to k; needs no tuning.

    `theta'_t = theta_t exp(-a (t + 1)^p)`, `a = ln k / (D/2)^p`. With p = 1 the base is replaced by
    a larger one and all frequencies are divided by a constant; with p = 0 it is position
    interpolation. The released code also multiplies queries by a factor that grows with the
    logarithm of the position; `rope(freqs=ntk_rope_mixed()) | log_length()` does so. Differs from
    the released code: nothing.

    Args:
      factor: k = new length / trained length, at least 1; 12 in the released code.
      power: p, at least 0.

    Raises:
      ValueError: a factor below 1, a negative power.

    Reference: Su, kexue.fm/archives/9706 and github.com/bojone/rerope.

    Example:
      >>> NTKRoPEMixed(factor=4.0, power=1.0)(4, 10000.0)
      (array([0.5   , 0.0025]), 1.0)
    """

    factor: Factor = 12.0
    power: NonNegative = 0.75

    def frequencies(self, rotary_dim, base):
        return ntk_rope_mixed_frequencies(rotary_dim, base, self.factor, power=self.power)
