"""Giraffe: rotary frequencies that are scaled linearly, scaled by a power, or truncated."""

import dataclasses
import math

import numpy as np

from posenc_jax.language.spec import CONTEXT
from posenc_jax.methods.frequency_rule import STATIC, FrequencyRule
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.checks import check_factor, check_train_len
from posenc_jax.protocol.registry import Card, register


def giraffe_frequencies(
    rotary_dim: int,
    base: float,
    *,
    factor: float = 1.0,
    power: float = 0.0,
    truncate: int | None = None,
) -> np.ndarray:
    """`x_t = theta_t / s (1 - 2t/D)^k`, float64, then truncated if `truncate` is given.

    With T = `truncate` and c = 2 pi / T, the frequency of one turn in T positions: planes with
    x_t >= c keep x_t, those with c/8 <= x_t < c get the constant c/16, and slower ones get 0.

    Args:
      rotary_dim, base: D, b.
      factor: s, at least 1.
      power: k, at least 0.
      truncate: T in tokens; None does not truncate.

    Raises:
      ValueError: a number out of range.
    """
    check_factor('giraffe', factor)
    if not (math.isfinite(power) and power >= 0):
        raise ValueError(f'giraffe: power must be at least 0, got {power}')
    theta = rope_frequencies(rotary_dim, base)
    bent = theta / factor * (1.0 - np.arange(0, rotary_dim, 2) / rotary_dim) ** power
    if truncate is None:
        return bent
    cut = 2 * math.pi / check_train_len('giraffe', truncate)
    return np.where(bent >= cut, bent, np.where(bent >= cut / 8, cut / 16, 0.0))


@register(
    'giraffe',
    kind='frequencies',
    card=Card(
        **STATIC,
        name='Giraffe',
        equation="x_t = theta_t/s (1 - 2t/D)^k; with c = 2 pi/L: theta'_t = x_t if x_t >= c, "
        'c/16 if x_t >= c/8, else 0',
        example='rope(freqs=giraffe(factor=2.0, power=0.1, truncated=True, train_len=64))',
        use_when=(
            'You tune a rotary model to longer texts and want the slow frequencies cut; '
            'the measured claims are contrary or mixed.'
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class Giraffe(FrequencyRule):
    """Scales rotary frequencies linearly or by a power, and truncates those that complete no turn
    within the trained length.

    `theta'_t = theta_t / s (1 - 2t/D)^k`. With `truncated`, planes that still turn at least once
    in the trained length keep this frequency, those that make at least 1/8 of a turn get one slow
    constant, and the others get 0 (see `giraffe_frequencies`). Differs from the paper: nothing. The
    three variants are applied in the order linear, power, truncation, as in the released code. The
    fourth variant, random positions, is `giraffe_random`.

    Args:
      factor: s of the linear scaling, which equals `pi`; 4 and 16 in the paper.
      power: k; 0.1 and 0.5 in the paper.
      truncated: whether frequencies are truncated at the trained length.
      train_len: T of the truncation, in tokens, from the model.

    Raises:
      ValueError: a factor below 1, a negative power, no train_len.

    Reference: Pal, Karkhanis, Roberts, Dooley, Sundararajan, Naidu, arXiv 2308.10882.

    Example:
      >>> Giraffe(truncated=True, train_len=64)(8, 10000.0)[0].round(4).tolist()
      [1.0, 0.1, 0.0, 0.0]
    """

    factor: float = 1.0
    power: float = 0.0
    truncated: bool = False
    train_len: int = CONTEXT

    def frequencies(self, rotary_dim, base):
        cut = self.train_len if self.truncated else None
        options = dict(factor=self.factor, power=self.power, truncate=cut)
        return giraffe_frequencies(rotary_dim, base, **options)
