"""p-RoPE: only the highest frequencies rotate."""

import dataclasses
from typing import Literal

import numpy as np

from posenc_jax.methods.frequency_rule import STATIC, FrequencyRule
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, register

Keep = Literal['highest', 'lowest', 'compressed']


def p_rope_frequencies(
    rotary_dim: int, base: float, p: float, *, keep: Keep = 'highest'
) -> np.ndarray:
    """`theta_t` in `floor(p D / 2)` planes and 0 in the others, float64.

    Args:
      rotary_dim: D; exponents keep the full width, `theta_t = base^(-2t/D)`.
      base: of the frequencies.
      p: the fraction that rotates, in [0, 1].
      keep: which planes rotate: those with the 'highest' frequencies (the paper), with the 'lowest'
        (its reversed ablation), or as many planes with the frequencies of a head of width p D
        ('compressed', its partial ablation).

    Raises:
      ValueError: p outside [0, 1], an unknown choice.
    """
    check_choice('keep', keep, ('highest', 'lowest', 'compressed'))
    if not 0 <= p <= 1:
        raise ValueError(
            f'p_rope: p is the fraction of planes that rotate and must lie in [0, 1], got {p}'
        )
    count = int(p * rotary_dim // 2)
    theta = rope_frequencies(rotary_dim, base)
    plane = np.arange(rotary_dim // 2)
    if keep == 'lowest':
        return np.where(plane >= rotary_dim // 2 - count, theta, 0.0)
    if keep == 'compressed' and count:
        theta = np.resize(rope_frequencies(2 * count, base), rotary_dim // 2)
    return np.where(plane < count, theta, 0.0)


@register(
    'p_rope',
    kind='frequencies',
    card=Card(
        **STATIC,
        name='p-RoPE',
        equation="theta'_t = theta_t for t < floor(p D / 2), else 0",
        example='rope(freqs=p_rope(p=0.75))',
        use_when=(
            'You train a rotary model in which some features should carry content without '
            'position; the measured claim is open.'
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class PRoPE(FrequencyRule):
    """Rotates the fraction `p` of planes with the highest frequencies; the others carry content
    without position.

    `theta'_t = theta_t` for `t < floor(p D / 2)`, else 0. `p=1` is RoPE, `p=0` no encoding. Differs
    from the paper: nothing.

    Args:
      p: fraction of planes that rotate, in [0, 1].
      keep: 'highest', or the ablations 'lowest' and 'compressed', see `p_rope_frequencies`.

    Raises:
      ValueError: p outside [0, 1], an unknown choice.

    Reference: Barbero, Vitvitskyi, Perivolaropoulos, Pascanu, Velickovic, arXiv 2410.06205.

    Example:
      >>> PRoPE(p=0.5)(8, 10000.0)[0].tolist()
      [1.0, 0.1, 0.0, 0.0]
    """

    p: float = 0.75
    keep: Keep = 'highest'

    def frequencies(self, rotary_dim, base):
        return p_rope_frequencies(rotary_dim, base, self.p, keep=self.keep)
