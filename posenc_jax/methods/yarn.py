"""YaRN: rotary frequencies that are interpolated by parts, and a temperature."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.base.double import Double
from posenc_jax.language.spec import CONTEXT
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.checks import check_factor, check_train_len
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, Promises, register

Ramp = Literal['index', 'rotations']


def yarn_temperature(
    factor: float | Float[Array, '...'],
    attention_factor: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
) -> float | Float[Array, '...']:
    """m, which multiplies cos and sin of queries and keys: `0.1 ln s + 1`, or `attention_factor`.

    If `mscale` a and `mscale_all_dim` c are both given, `(0.1 a ln s + 1) / (0.1 c ln s + 1)`. An
    array of s gives an array of m.
    """
    log = jnp.log(factor) if isinstance(factor, jax.Array) else math.log(factor)
    grown = lambda slope: 0.1 * slope * log + 1.0
    if attention_factor is not None:
        if not attention_factor > 0:
            raise ValueError(f'yarn: attention_factor must be positive, got {attention_factor}')
        traced = isinstance(factor, jax.Array)
        return jnp.full_like(factor, attention_factor) if traced else attention_factor
    for name, given in (('mscale', mscale), ('mscale_all_dim', mscale_all_dim)):
        if given is not None and not 0 < given < math.inf:
            raise ValueError(f'yarn: {name} must be positive and finite, or None, got {given}')
    if mscale is not None and mscale_all_dim is not None:
        return grown(mscale) / grown(mscale_all_dim)
    return grown(1.0)


def yarn_ramp(
    planes: Num[np.ndarray, 'F'],
    rotary_dim: int,
    base: float,
    train_len: int,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    ramp: Ramp = 'index',
) -> Float[np.ndarray, 'F']:
    """How far each plane t is interpolated, from 0 to 1: `clip((t - lo) / (hi - lo), 0, 1)`. lo and
    hi are the planes that turn `beta_fast` and `beta_slow` times in L positions, `D ln(L / (2 pi
    beta)) / (2 ln b)`.

    Args:
      planes: t, which may be a fraction; the plane has the frequency `b^(-2t / D)`.
      rotary_dim, base: D, b.
      train_len: L.
      beta_fast: rotations within L above which a plane is kept.
      beta_slow: rotations within L below which a plane is interpolated by s.
      truncate: whether lo is rounded down and hi up, as in the released code.
      ramp: 'index' for a ramp that is linear in the index of the plane, as in every released
        implementation; 'rotations' for one linear in its rotations, as in the paper's text.

    Raises:
      ValueError: no train_len, betas that are not ordered, an unknown ramp, a base of 1 or less.
    """
    check_train_len('yarn', train_len)
    check_choice('ramp', ramp, ('index', 'rotations'))
    if not 0 < beta_slow < beta_fast:
        raise ValueError(
            f'yarn: expected 0 < beta_slow < beta_fast, got {beta_slow=}, {beta_fast=}'
        )
    if base <= 1:
        raise ValueError(f'yarn needs a base above 1, got {base}')
    if ramp == 'rotations':
        rotations = train_len * base ** (-2 * planes / rotary_dim) / (2 * math.pi)
        return 1.0 - np.clip((rotations - beta_slow) / (beta_fast - beta_slow), 0.0, 1.0)
    plane = lambda beta: (
        rotary_dim * math.log(train_len / (2 * math.pi * beta)) / (2 * math.log(base))
    )
    low, high = plane(beta_fast), plane(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low = max(low, 0)
    # With a train_len below one rotation, high would be below low.
    high = max(min(high, rotary_dim - 1), low)
    if low == high:
        high += 0.001
    return np.clip((planes - low) / (high - low), 0.0, 1.0)


def yarn_frequencies(
    rotary_dim: int,
    base: float,
    factor: float | Double | Float[Array, '...'],
    train_len: int,
    **ramp: Any,
) -> np.ndarray | Double:
    """`theta_t ((1 - ramp_t) + ramp_t / s)`, float64: planes that turn often are kept, and those
    that turn rarely are interpolated.

    Args:
      rotary_dim, base, train_len, ramp: as for `yarn_ramp`.
      factor: s, at least 1. A `Double` or an array [...] is not checked, and gives a `Double`
        [..., D/2].

    Raises:
      ValueError: a factor below 1; as for `yarn_ramp`.
    """
    current = isinstance(factor, (Double, jax.Array))
    factor = Double.of(factor) if current else factor
    check_factor('yarn', 1.0 if current else factor)
    theta, planes = rope_frequencies(rotary_dim, base), np.arange(rotary_dim // 2)
    interpolated = yarn_ramp(planes, rotary_dim, base, train_len, **ramp)
    if current:  # in a form that gives theta itself where s = 1
        return theta * (1.0 - interpolated * (1.0 - 1.0 / factor[..., None]))
    return theta * (1.0 - interpolated) + theta / factor * interpolated


@register(
    'yarn',
    kind='frequencies',
    card=Card(
        name='YaRN',
        equation="theta'_t = (1 - ramp_t) theta_t + ramp_t theta_t / s; cos and sin times m = "
        '0.1 ln s + 1',
        example='rope(freqs=yarn(factor=4.0, train_len=64))',
        share='model',
        promises=Promises(relative=True, fused=True),
    ),
)
@dataclasses.dataclass(frozen=True)
class YaRN:
    """Keeps high rotary frequencies, interpolates low ones by `factor`, and multiplies logits by m
    squared.

    `theta'_t = (1 - ramp_t) theta_t + ramp_t theta_t / s`, `m = 0.1 ln s + 1` on cos and sin of
    queries and keys. With `dynamic`, s and m follow the current length l, `s = max(1, l / L)`, one
    s for all positions of a pass; l is the largest valid position plus one of the row, or of the
    packed document. Up to L this is plain RoPE.

    Differs from the paper: the ramp is linear in the index of the plane, as in the released code;
    `ramp='rotations'` is the paper's formula. Keys of a dynamic rule are cached raw and rotated
    again when l grows, so a decoding step of one layer equals the full pass over its prefix. The
    inputs of deeper layers are still those of shorter l, unless `generate(decoding=Recomputed())`
    (lab/decoding/recomputed.py) computes the text again at every step beyond L.

    Args:
      factor: s = new length / trained length, at least 1. A dynamic rule takes no factor, since its
        s follows the length without a bound.
      train_len: L, from the model.
      beta_fast, beta_slow, truncate, ramp: see `yarn_ramp`.
      attention_factor, mscale, mscale_all_dim: see `yarn_temperature`; `attention_factor=1.0` is
        "NTK by parts". A given attention factor is m at every length.
      dynamic: whether s follows the current length.

    Raises:
      ValueError: a factor below 1, none without `dynamic` or one with it, no train_len, betas that
        are not ordered.

    Reference: Peng, Quesnelle, Fan, Shippole, arXiv 2309.00071.

    Example:
      >>> inv_freq, m = YaRN(factor=4.0, train_len=64)(16, 10000.0)
      >>> inv_freq[:2].round(4).tolist(), round(m, 4)
      ([1.0, 0.2372], 1.1386)
    """

    spec_kind: ClassVar[str] = 'frequencies'

    factor: float | None = None
    train_len: int = CONTEXT
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    ramp: Ramp = 'index'
    dynamic: bool = False

    def __post_init__(self):
        if self.dynamic and self.factor is not None:
            raise ValueError(
                'yarn: a dynamic factor is current length / train_len; leave out '
                f'factor={self.factor}'
            )
        if not self.dynamic and self.factor is None:
            raise ValueError(
                "yarn needs 'factor', new length / trained length, unless dynamic=True lets it "
                'follow the length'
            )
        # The formulas check their own arguments.
        self._rule(2, 10000.0, 1.0 if self.dynamic else self.factor)

    @property
    def uses_length(self) -> bool:
        return self.dynamic

    def __call__(self, rotary_dim, base, length=None):
        if not self.dynamic:
            return self._rule(rotary_dim, base, self.factor)
        # s = 1 + (l - L) / L. The excess l - L is an integer, so that l = L gives exactly 1.
        excess = Double.of(jnp.maximum(length - self.train_len, 0))
        return self._rule(rotary_dim, base, 1.0 + excess * (1.0 / self.train_len))

    def _rule(self, rotary_dim, base, factor):
        ramp = {
            name: getattr(self, name) for name in ('beta_fast', 'beta_slow', 'truncate', 'ramp')
        }
        inv_freq = yarn_frequencies(rotary_dim, base, factor, self.train_len, **ramp)
        single = factor.high if isinstance(factor, Double) else factor
        scales = self.attention_factor, self.mscale, self.mscale_all_dim
        return inv_freq, yarn_temperature(single, *scales)
