"""Dynamic NTK scaling: a rotary base that grows with the current length."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Num

from posenc_jax.base.double import Double, root_powers
from posenc_jax.language.spec import CONTEXT
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.checks import check_factor, check_train_len
from posenc_jax.protocol.registry import Card, Promises, register


def dynamic_ntk_frequencies(
    rotary_dim: int, base: float, length: Num[Array, '...'], *, train_len: int, factor: float = 1.0
) -> Double:
    """`theta_t r^(-2t/(D-2))`, `r = max(1, f l / L - (f - 1))`: the frequencies of base `b
    r^(D/(D-2))`, [..., D/2].

    Args:
      rotary_dim: D, at least 4.
      base: b.
      length: l, current lengths in tokens.
      train_len: L.
      factor: f, at least 1; the yarn repository has 1.

    Raises:
      ValueError: a factor below 1, a train_len that is no positive integer, a width below 4.
    """
    if rotary_dim < 4:
        raise ValueError(f'dynamic_ntk needs a rotary width of at least 4, got {rotary_dim}')
    check_factor('dynamic_ntk', factor), check_train_len('dynamic_ntk', train_len)
    # 1 + (l - L) f / L. The excess l - L is an integer, so that l = L gives exactly 1.
    ratio = 1.0 + Double.of(jnp.maximum(length - train_len, 0)) * (factor / train_len)
    return rope_frequencies(rotary_dim, base) * root_powers(ratio, rotary_dim // 2 - 1)


@register(
    'dynamic_ntk',
    kind='frequencies',
    card=Card(
        name='Dynamic NTK',
        equation="theta'_t = b'^(-2t/D), b' = b max(1, f l / L - (f - 1))^(D/(D-2)), l the "
        'current length',
        example='rope(freqs=dynamic_ntk(factor=2.0, train_len=8))',
        use_when=(
            'You have a rotary model that must stay unchanged on short texts and read '
            'longer ones without tuning.'
        ),
        share='model',
        promises=Promises(cached='raw', fused=True),
    ),
)
@dataclasses.dataclass(frozen=True)
class DynamicNTK:
    """Raises the rotary base with the current length, once a sequence is longer than trained.

    `b' = b max(1, f l / L - (f - 1))^(D/(D-2))`, one base for all positions of a pass; l is the
    largest valid position plus one of the row, or of the packed document. Differs from the released
    implementations: keys are cached raw and rotated again when l grows, where they keep keys that
    were rotated with older bases. So a decoding step of one layer equals the full pass over its
    prefix. The inputs of deeper layers are still those of shorter l, unless
    `generate(decoding=Recomputed())` (lab/decoding/recomputed.py) computes the text again at every
    step beyond L.

    Args:
      factor: f, at least 1; the yarn repository has 1.
      train_len: L, from the model.

    Raises:
      ValueError: a factor below 1, a train_len that is no positive integer, a rotary width below 4.

    Reference: Peng, Quesnelle, Fan, Shippole, arXiv 2309.00071.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> print(np.asarray(DynamicNTK(train_len=8)(4, 10000.0, jnp.array([8, 16]))[0]))
      [[1.    0.01 ]
       [1.    0.005]]
    """

    spec_kind: ClassVar[str] = 'frequencies'
    uses_length: ClassVar[bool] = True

    factor: float = 1.0
    train_len: int = CONTEXT

    def __post_init__(self):
        check_factor('dynamic_ntk', self.factor)
        check_train_len('dynamic_ntk', self.train_len)

    def __call__(self, rotary_dim, base, length=None):
        inv_freq = dynamic_ntk_frequencies(
            rotary_dim, base, length, train_len=self.train_len, factor=self.factor
        )
        return inv_freq, jnp.ones(length.shape, jnp.float32)
