"""PI: position interpolation."""

import dataclasses

import numpy as np

from posenc_jax.methods.frequency_rule import STATIC, FrequencyRule
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.checks import check_factor
from posenc_jax.protocol.registry import Card, register


def pi_frequencies(rotary_dim: int, base: float, factor: float) -> np.ndarray:
    """`theta_t / factor`, float64. With them, position i is rotated like position i / factor with
    theta.
    """
    return rope_frequencies(rotary_dim, base) / check_factor('pi', factor)


@register(
    'pi',
    kind='frequencies',
    card=Card(
        **STATIC,
        name='PI',
        example='rope(freqs=pi(factor=4.0))',
        use_when=(
            'You tune a rotary model to longer texts for 1000 steps or more and want the simplest '
            'rule; with fewer steps YaRN is ahead.'
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class PI(FrequencyRule):
    """Divides every rotary frequency by `factor`, so that `factor` times the trained length stays
    within the trained angles.

    `A_it = (i / s) theta_t`. Differs from the paper: the frequencies are scaled instead of the
    positions, which stay integers; the angles are the same.

    Args:
      factor: s = new length / trained length, at least 1.

    Raises:
      ValueError: a factor below 1.

    Reference: Chen, Wong, Chen, Tian, arXiv 2306.15595.

    Example:
      >>> PI(factor=2.0)(4, 10000.0)
      (array([0.5  , 0.005]), 1.0)
    """

    factor: float

    def frequencies(self, rotary_dim, base):
        return pi_frequencies(rotary_dim, base, self.factor)
