"""LongRoPE: one rescale factor per rotary plane, found by search."""

import dataclasses
import math
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from posenc_jax.base.double import Double, choose
from posenc_jax.language.spec import CONTEXT
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.checks import check_factor, check_train_len
from posenc_jax.protocol.errors import check_choice, check_number
from posenc_jax.protocol.registry import Card, Promises, register

Magnitude = Literal['su', 'yarn', 'none']
Mode = Literal['length', 'short', 'long']


def longrope_temperature(factor: float, train_len: int, magnitude: Magnitude = 'su') -> float:
    """The magnitude m, which multiplies cos and sin: `sqrt(1 + ln s / ln L)` ('su'), `0.1 ln s + 1`
    ('yarn'), or 1 ('none').

    Raises:
      ValueError: a factor below 1, a train_len below 2, an unknown choice.
    """
    check_factor('longrope', factor)
    check_choice('magnitude', magnitude, ('su', 'yarn', 'none'))
    if check_train_len('longrope', train_len) < 2:
        raise ValueError(
            'longrope: the magnitude divides by ln(train_len); train_len must be at least 2, '
            f'got {train_len}'
        )
    if magnitude == 'none' or factor == 1:
        return 1.0
    if magnitude == 'yarn':
        return 0.1 * math.log(factor) + 1.0
    return math.sqrt(1 + math.log(factor) / math.log(train_len))


def longrope_factors(factors, scale: float, new_scale: float) -> np.ndarray:
    """Factors lambda that were found for the scale s, carried over to the scale s':
    `1 + (lambda - 1) (s' - 1) / (s - 1)`.
    """
    if check_factor('longrope', scale) == 1:
        raise ValueError(
            'longrope: factors for the scale 1 cannot be carried over to another scale'
        )
    more = (np.asarray(factors, np.float64) - 1.0) * (check_factor('longrope', new_scale) - 1.0)
    return 1.0 + more / (scale - 1.0)


@register(
    'longrope',
    kind='frequencies',
    card=Card(
        name='LongRoPE',
        equation="theta'_t = theta_t / lambda_t at positions >= n_hat, theta_t before; cos and "
        'sin times sqrt(1 + ln s / ln L)',
        example='rope(freqs=longrope(long=(1.0, 2.0, 3.0, 4.0), short=(1.0, 1.0, 1.5, 2.0), '
        'start=2, factor=4.0, train_len=8))',
        use_when=(
            'You have a checkpoint such as Phi-3 with such factors, or can search and '
            'tune; two measured claims are contrary.'
        ),
        share='model',
        promises=Promises(cached='raw', fused=True),
    ),
)
@dataclasses.dataclass(frozen=True)
class LongRoPE:
    """Divides every rotary frequency by a factor of its own; the first positions keep the original
    frequencies.

    At positions >= n_hat, `theta'_t = theta_t / lambda_t` and cos and sin have the magnitude m; at
    the positions before, `theta_t` and 1. With two lists, all keys use `short` while the sequence
    is no longer than trained, and `long` beyond. Differs from the released implementations: keys
    are cached raw while the list depends on the length, where they keep keys that were rotated by
    the other list (Phi-3 of `transformers` reads the text again when it passes L). So a decoding
    step of one layer equals the full pass over its prefix. The inputs of deeper layers would still
    be those of `short`, so `generate` by default computes the text again once, where the list
    changes. With `dynamic`, `decoding=Recomputed()` (lab/decoding/recomputed.py) does so at every
    step beyond L.

    Args:
      long: lambda_t, rotary width / 2 numbers of at least 1 (the search also keeps them ascending).
      factor: s = longest length / train_len, for the magnitude and for `dynamic`.
      short: factors up to `train_len`; None uses `long` at every length.
      start: n_hat, how many first positions keep the original frequencies.
      magnitude: 'su' (default), 'yarn' or 'none', see `longrope_temperature`; a number is m itself.
      mode: the list in use: 'length' chooses by the current length, 'short' and 'long' always take
        this list, and keys are then cached encoded.
      dynamic: beyond `train_len` the factors grow with the current length l, `1 + (lambda - 1) (l/L
        - 1) / (s - 1)`.
      train_len: L, from the model.

    Raises:
      ValueError: factors below 1 or beyond float32, lists of the wrong length, start below 0, a
        mode without its list, `dynamic` with another mode or a factor of 1.

    Reference: Ding, Zhang, Zhang, Xu, Shang, Xu et al., arXiv 2402.13753.

    Example:
      >>> inv_freq, m = LongRoPE(long=(1.0, 4.0), factor=4.0, train_len=64)(4, 10000.0)
      >>> inv_freq.tolist(), round(m, 6)
      ([1.0, 0.0025], 1.154701)
    """

    spec_kind: ClassVar[str] = 'frequencies'

    long: tuple[float, ...]
    factor: float
    short: tuple[float, ...] | None = None
    start: int = 0
    magnitude: Magnitude | float = 'su'
    mode: Mode = 'length'
    dynamic: bool = False
    train_len: int = CONTEXT

    def __post_init__(self):
        check_choice('mode', self.mode, ('length', 'short', 'long'))
        check_factor('longrope', self.factor)
        check_train_len('longrope', self.train_len)
        for name, factors in (('long', self.long), ('short', self.short)):
            # Any order and size is allowed; a plane with a huge factor does not rotate.
            what = f'longrope: a factor of {name} divides a frequency and'
            for factor in factors or ():
                check_number(what, factor, least=1)
        if self.short is not None and len(self.short) != len(self.long):
            raise ValueError(
                'longrope: both lists must have the same number of factors, got '
                f'{len(self.long)} long factors and {len(self.short)} short ones'
            )
        if self.mode == 'short' and self.short is None:
            raise ValueError("longrope: mode='short' needs the list short")
        if self.start < 0:
            raise ValueError(f'longrope: start must be at least 0, got {self.start}')
        if self.dynamic and (self.mode != 'length' or self.factor == 1):
            raise ValueError(
                "longrope: dynamic factors follow the length: they need mode='length' and a "
                'factor above 1'
            )
        if not isinstance(self.magnitude, str):
            check_number('longrope: the magnitude', self.magnitude, above=0)
        _ = self.temperature  # the rule checks its own arguments

    @property
    def uses_length(self) -> bool:
        return self.dynamic or (self.mode == 'length' and self.short is not None)

    @property
    def switch(self) -> int | None:
        return self.train_len if self.uses_length and not self.dynamic else None

    @property
    def temperature(self) -> float:
        if not isinstance(self.magnitude, str):
            return self.magnitude
        return longrope_temperature(self.factor, self.train_len, self.magnitude)

    def __call__(self, rotary_dim, base, length=None):
        if len(self.long) != rotary_dim // 2:
            raise ValueError(
                f'longrope: {len(self.long)} factors for a rotary width of {rotary_dim}, '
                f'expected {rotary_dim // 2}'
            )
        theta = rope_frequencies(rotary_dim, base)
        long = np.asarray(self.long)
        if not self.uses_length:
            factors = np.asarray(self.short) if self.mode == 'short' else long
            return theta / factors, self.temperature
        short = np.ones_like(long) if self.short is None else np.asarray(self.short)
        longer = Double.of(theta / long)
        if self.dynamic:
            # theta / (1 + (lambda - 1) y), in a form in which a huge lambda does not overflow.
            over = Double.of(jnp.maximum(length - self.train_len, 0))[..., None]
            grown = over / (self.train_len * (self.factor - 1.0))
            longer = longer / (1.0 / long + (1.0 - 1.0 / long) * grown)
        inv_freq = choose((length > self.train_len)[..., None], longer, Double.of(theta / short))
        return inv_freq, jnp.full(length.shape, self.temperature, jnp.float32)
