"""HoPE: only frequencies that complete a period within the trained length rotate."""

import dataclasses
import math

import numpy as np

from posenc_jax.methods.frequency_rule import STATIC, FrequencyRule
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.bounds import CONTEXT, Positive
from posenc_jax.protocol.checks import check_train_len
from posenc_jax.protocol.errors import check_number
from posenc_jax.protocol.registry import Card, register


def hope_rope_frequencies(
    rotary_dim: int, base: float, train_len: int, *, periods: float = 1.0
) -> np.ndarray:
    """`theta_t` in planes with `theta_t > 2 pi n / L` and 0 in the others, float64.

    Args:
      rotary_dim: D, `theta_t = base^(-2t/D)`.
      base: of the frequencies.
      train_len: L, in tokens.
      periods: n, how many periods a plane that rotates completes within L.

    Raises:
      ValueError: no train_len; periods that are not positive; a length within which not even the
        fastest plane completes so many periods.
    """
    cut = 2 * math.pi * check_number('hope_rope: periods', periods, above=0)
    cut = cut / check_train_len('hope_rope', train_len)
    theta = rope_frequencies(rotary_dim, base)
    if theta[0] <= cut:
        least = math.floor(train_len * cut) + 1
        raise ValueError(
            f'hope_rope: no plane completes periods={periods} within train_len={train_len}, so '
            f'nothing would rotate; the least train_len is {least}, and nope() has no positions'
        )
    return np.where(theta > cut, theta, 0.0)


@register(
    'hope_rope',
    kind='frequencies',
    card=Card(
        **STATIC,
        name='HoPE',
        equation="theta'_t = theta_t for theta_t > 2 pi n / L, else 0",
        example='rope(freqs=hope_rope(train_len=64))',
    ),
)
@dataclasses.dataclass(frozen=True)
class HoPERoPE(FrequencyRule):
    """Rotates the planes that complete a period within the trained length; the others carry content
    without position, at any distance.

    `theta'_t = theta_t` where `theta_t > 2 pi n / L`, else 0. It is `p_rope` with the number of
    planes that follows from the trained length. Differs from the paper: it has no official code,
    and it speaks of components whose first part of a period lies within the training window as
    activated, which may be a slightly different set; `periods` moves the threshold.

    Args:
      periods: n, a positive number; a plane rotates if it completes more periods within L.
      train_len: L, from the model. A model that is tuned at another length keeps its planes if the
        first length is written here.

    Raises:
      ValueError: no train_len; a threshold above the fastest plane, at which nothing would rotate.

    Reference: Chen, Lv, Luan, Wang, Liu, arXiv 2410.21216.

    Example:
      >>> HoPERoPE(train_len=128)(8, 10000.0)[0].tolist()
      [1.0, 0.1, 0.0, 0.0]
    """

    periods: Positive = 1.0
    train_len: int = CONTEXT

    def frequencies(self, rotary_dim, base):
        return hope_rope_frequencies(rotary_dim, base, self.train_len, periods=self.periods)
