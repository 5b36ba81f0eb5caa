"""LongRoPE2: factors of the rotary planes from a critical one on, and an interpolated base before
it.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from posenc_jax.methods.longrope import LongRoPE, Magnitude
from posenc_jax.protocol.bounds import CONTEXT, Count, Positive, Size
from posenc_jax.protocol.checks import check_factor, check_train_len
from posenc_jax.protocol.errors import check_number
from posenc_jax.protocol.registry import Card, Promises, register


def longrope2_critical_plane(
    rotary_dim: int, base: float, train_len: int, periods: float = 1.0
) -> int:
    """`ceil(D/2 log_b(L / (2 pi n)))`, at least 1: the first plane, counted from 0, that completes
    less than n periods within the trained length L. It is `rotary_dim // 2` or more if no plane
    does.

    Args:
      rotary_dim, base, train_len: D, b, L.
      periods: n; 1 for the theoretical critical plane, 10 for the first plane that a search tries.

    Raises:
      ValueError: a base of 1 or less, no train_len, periods that are not positive.

    Example:
      >>> (
      ...     longrope2_critical_plane(96, 10000.0, 2048),
      ...     longrope2_critical_plane(96, 10000.0, 2048, periods=10),
      ... )
      (31, 19)
    """
    check_number('longrope2: periods', periods, above=0)
    check_number('longrope2: base', base, above=1)
    turns = check_train_len('longrope2', train_len) / (2 * math.pi * periods)
    return max(math.ceil(rotary_dim / 2 * math.log(turns) / math.log(base)), 1)


def longrope2_factors(critical: int, tail: tuple[float, ...]) -> Float[np.ndarray, 'F']:
    """`lambda_t = lambda_r^(t/r)` for t < r, then the given factors, float64. Before the critical
    plane r it is a larger base, which keeps the plane 0.

    Args:
      critical: r, at least 1.
      tail: lambda_r, lambda_(r+1), ...

    Example:
      >>> longrope2_factors(2, (4.0, 5.0)).tolist()
      [1.0, 2.0, 4.0, 5.0]
    """
    return np.concatenate([tail[0] ** (np.arange(critical) / critical), tail])


def longrope2_base(base: float, train_len: int, length: int) -> float:
    """`b^(ln(L' / 2 pi) / ln(L / 2 pi))`: the base at which the plane that is critical for L
    completes a period within L'. It is the NTK baseline of the paper.

    Args:
      base, train_len, length: b, L, L'; L is at least 7, so that a period fits in.

    Raises:
      ValueError: a train_len below 7, or a length below train_len.

    Example:
      >>> round(longrope2_base(10000.0, 2048, 131072), -1)
      7494910.0
    """
    if not 2 * math.pi < check_train_len('longrope2', train_len) <= length:
        raise ValueError(
            'longrope2: a period of 2 pi fits into train_len, which is at most the length; got '
            f'{train_len=}, {length=}'
        )
    turns = lambda length: math.log(length / (2 * math.pi))
    return base ** (turns(length) / turns(train_len))


@register(
    'longrope2',
    kind='frequencies',
    card=Card(
        name='LongRoPE2',
        equation="theta'_t = theta_t / lambda_t in texts beyond L, lambda_t = lambda_r^(t/r) for "
        't < r; cos and sin times sqrt(1 + ln s / ln L)',
        example='rope(freqs=longrope2(critical=2, tail=(4.0, 5.0), factor=4.0, start=2, '
        'train_len=8))',
        use_when=(
            'You can search the factors on your own long texts, and short texts have to '
            'stay as they are.'
        ),
        share='model',
        promises=Promises(cached='raw', fused=True),
    ),
)
@dataclasses.dataclass(frozen=True)
class LongRoPE2:
    """Divides rotary frequencies in texts that are longer than trained, by searched factors from a
    critical plane r on. Texts of up to L tokens keep the frequencies of the trained model.

    `theta'_t = theta_t / lambda_t`, `lambda_t = lambda_r^(t/r)` for t < r. From r on the factors
    ascend between s and 2s. Planes beyond the theoretical critical one, which complete no period
    within L, were trained on a part of their angles alone; the paper finds that some planes before
    it were trained too little as well. `python -m posenc_jax.lab.longrope_search
    --variant=critical --objective=needle` finds r and the factors of a model.

    The length is that of a packed document. So a language task with packing='documents', trained at
    the length s L, mixes both windows: short documents are read with the original frequencies, and
    long ones with the new ones (the paper's mixed training). Keys are cached raw, and `generate`
    computes the text again once, where it passes L. Beyond L the numbers are those of `longrope`
    with these factors.

    Differs from the paper: it does not say how cos and sin are scaled; beyond L they have the
    magnitude of LongRoPE, up to L none.

    Args:
      critical: r, counted from 0, at least 1.
      tail: lambda_r, lambda_(r+1), ..., one number for each plane from r on.
      factor: s = longest length / train_len.
      start, magnitude: as for `longrope`; the paper's rule has no first positions of their own.
      train_len: L, from the model.

    Raises:
      ValueError: factors that descend or lie outside s .. 2s, a number of planes that does not
        fit, a factor below 1, no train_len, a train_len of 1.

    Reference: Shang, Zhang, Wang, Zhang, Lopez, Yang, Chen, Yang, arXiv 2502.20082.

    Example:
      >>> rule = LongRoPE2(critical=1, tail=(4.0, 6.0), factor=4.0, train_len=64)
      >>> inv_freq, m = rule(6, 1000.0, jnp.array([64, 65]))
      >>> np.asarray(inv_freq).round(4).tolist(), m.round(4).tolist()
      ([[1.0, 0.1, 0.01], [1.0, 0.025, 0.0017]], [1.0, 1.1547])
    """

    spec_kind: ClassVar[str] = 'frequencies'
    uses_length: ClassVar[bool] = True

    critical: Size
    tail: tuple[Positive, ...]
    factor: float
    start: Count = 0
    magnitude: Magnitude | float = 'su'
    train_len: int = CONTEXT

    def __post_init__(self):
        s = check_factor('longrope2', self.factor)
        if not self.tail:
            raise ValueError('longrope2 needs factors of the planes from the critical one on')
        low, high, ascends = min(self.tail), max(self.tail), tuple(sorted(self.tail)) == self.tail
        # Products of lengths and quotients may miss s by a rounding error.
        if not (ascends and s * (1 - 1e-9) <= low and high <= 2 * s * (1 + 1e-9)):
            raise ValueError(
                f'longrope2: the factors of tail ascend between factor={s} and {2 * s}, got '
                f'{self.tail}'
            )
        _ = self.beyond  # the rule checks its own arguments

    @property
    def long(self) -> tuple[float, ...]:
        """lambda_t of all planes."""
        return tuple(longrope2_factors(self.critical, self.tail).tolist())

    @property
    def beyond(self) -> LongRoPE:
        """The rule of texts beyond L; up to L it has the original frequencies too."""
        ones = (1.0,) * (self.critical + len(self.tail))
        own: dict[str, Any] = dict(
            start=self.start, magnitude=self.magnitude, train_len=self.train_len
        )
        return LongRoPE(self.long, self.factor, ones, **own)

    @property
    def switch(self) -> int:
        return self.train_len

    @property
    def temperature(self) -> float:
        """The magnitude of cos and sin beyond L."""
        return self.beyond.temperature

    def __call__(self, rotary_dim: int, base: float, length: Any = None):
        planes = self.critical + len(self.tail)
        if planes != rotary_dim // 2:
            raise ValueError(
                f'longrope2: critical={self.critical} and {len(self.tail)} factors are {planes} '
                f'planes, expected {rotary_dim // 2} for a rotary width of {rotary_dim}'
            )
        inv_freq, m = self.beyond(rotary_dim, base, length)
        return inv_freq, jnp.where(length > self.train_len, m, 1.0)
