"""ABF: adjusted base frequency."""

import dataclasses

import numpy as np
from jaxtyping import Float

from posenc_jax.methods.frequency_rule import STATIC, FrequencyRule
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.registry import Card, register


def abf_frequencies(rotary_dim: int, base: float = 500000.0) -> Float[np.ndarray, ' F']:
    """`base^(-2t/D)`, radians per position, float64: those of `rope` with a larger base."""
    return rope_frequencies(rotary_dim, base)


@register(
    'abf',
    kind='frequencies',
    card=Card(
        **STATIC,
        name='ABF',
        equation="theta'_t = b'^(-2t/D), b' = 500000",
        example='rope(freqs=abf())',
    ),
)
@dataclasses.dataclass(frozen=True)
class ABF(FrequencyRule):
    """Replaces the rotary base by a larger one, for continued training at a longer length.

    `theta'_t = b'^(-2t/D)`. The base of the encoding itself has no effect. Differs from the paper:
    nothing.

    Args:
      base: b'.

    Raises:
      ValueError: a base below 1 or beyond float32.

    Reference: Xiong, Liu, Molybog, Zhang, Bhargava, Hou et al., arXiv 2309.16039.

    Example:
      >>> ABF()(4, 10000.0)[0].round(6).tolist()
      [1.0, 0.001414]
    """

    base: float = 500000.0

    def frequencies(self, rotary_dim, base):
        return abf_frequencies(rotary_dim, self.base)
