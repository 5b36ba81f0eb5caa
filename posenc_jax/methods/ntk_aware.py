"""NTK-aware scaling: a larger rotary base."""

import dataclasses

from posenc_jax.methods.frequency_rule import STATIC, FrequencyRule
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.checks import check_factor
from posenc_jax.protocol.registry import Card, register


def ntk_aware_base(rotary_dim: int, base: float, factor: float) -> float:
    """`b' = b s^(D/(D-2))`, with D the rotary width. It divides the lowest frequency by exactly s
    and keeps the highest.

    Raises:
      ValueError: a factor below 1; a width below 4, where the highest frequency is the lowest.
    """
    if rotary_dim < 4:
        raise ValueError(f'ntk_aware needs a rotary width of at least 4, got {rotary_dim}')
    return base * check_factor('ntk_aware', factor) ** (rotary_dim / (rotary_dim - 2))


@register(
    'ntk_aware',
    kind='frequencies',
    card=Card(
        **STATIC,
        name='NTK-aware',
        example='rope(freqs=ntk_aware(factor=4.0))',
        use_when=(
            'You extend a rotary model a few times without tuning and want a rule of one number.'
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class NTKAware(FrequencyRule):
    """Raises the rotary base so that low frequencies are interpolated and high ones kept; no
    fine-tuning needed.

    `theta'_t = b'^(-2t/D)`, `b' = b s^(D/(D-2))`. Differs from the paper (Definition 1): nothing.

    Args:
      factor: s, at least 1; the range runs out a little before s times the trained length.

    Raises:
      ValueError: a factor below 1, a rotary width below 4.

    Reference: Peng, Quesnelle, Fan, Shippole, arXiv 2309.00071.

    Example:
      >>> NTKAware(factor=4.0)(4, 10000.0)
      (array([1.    , 0.0025]), 1.0)
    """

    factor: float

    def frequencies(self, rotary_dim, base):
        return rope_frequencies(rotary_dim, ntk_aware_base(rotary_dim, base, self.factor))
