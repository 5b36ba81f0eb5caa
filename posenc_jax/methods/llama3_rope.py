"""The frequency scaling of Llama 3.1."""

import dataclasses
import math

import numpy as np

from posenc_jax.language.spec import CONTEXT
from posenc_jax.methods.frequency_rule import STATIC, FrequencyRule
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.checks import check_factor, check_train_len
from posenc_jax.protocol.registry import Card, register


def llama3_rope_frequencies(
    rotary_dim: int,
    base: float,
    factor: float,
    train_len: int,
    *,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
) -> np.ndarray:
    """`g theta_t + (1 - g) theta_t / s`, float64; g depends on the turns of a plane in `train_len`.

    `g = clip((L theta_t / 2 pi - lf) / (hf - lf), 0, 1)`: planes that turn more than hf times are
    kept, those that turn less than lf times are interpolated by s.

    Args:
      rotary_dim, base: D, b.
      factor: s, at least 1.
      train_len: L.
      low_freq_factor, high_freq_factor: lf, hf.

    Raises:
      ValueError: a factor below 1, no train_len, lf or hf not ordered.
    """
    check_factor('llama3_rope', factor), check_train_len('llama3_rope', train_len)
    if not 0 < low_freq_factor < high_freq_factor:
        raise ValueError(
            'llama3_rope: expected 0 < low_freq_factor < high_freq_factor, got '
            f'{low_freq_factor=}, {high_freq_factor=}'
        )
    theta = rope_frequencies(rotary_dim, base)
    turns = train_len * theta / (2 * math.pi)
    kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return kept * theta + (1.0 - kept) * theta / factor


@register(
    'llama3_rope',
    kind='frequencies',
    card=Card(
        **STATIC,
        name='Llama 3 RoPE',
        equation="theta'_t = g theta_t + (1-g) theta_t / s, g = clip((L theta_t / 2 pi - lf) / "
        '(hf - lf), 0, 1)',
        example='rope(freqs=llama3_rope(factor=4.0, train_len=64))',
        use_when=('You load or extend a model such as Llama 3.1, whose settings name this rule.'),
    ),
)
@dataclasses.dataclass(frozen=True)
class Llama3RoPE(FrequencyRule):
    """Keeps rotary planes that turn often within the trained length and interpolates those that
    hardly turn once.

    `theta'_t = g theta_t + (1 - g) theta_t / s`, g linear in the turns `L theta_t / 2 pi` between
    lf and hf. Differs from the released code: nothing.

    Args:
      factor: s; 8 in Llama 3.1, 32 in the small models of Llama 3.2.
      train_len: L, from the model; 8192 in Llama 3.
      low_freq_factor, high_freq_factor: lf, hf.

    Raises:
      ValueError: a factor below 1, no train_len, lf and hf that are not ordered.

    Reference: Grattafiori, Dubey, Jauhri, Pandey et al., arXiv 2407.21783; the rule itself is in
    the released code.

    Example:
      >>> Llama3RoPE(factor=8.0, train_len=256)(8, 5e5)[0].round(5).tolist()
      [1.0, 0.01054, 0.00018, 1e-05]
    """

    factor: float = 8.0
    train_len: int = CONTEXT
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def frequencies(self, rotary_dim, base):
        bounds = dict(low_freq_factor=self.low_freq_factor, high_freq_factor=self.high_freq_factor)
        return llama3_rope_frequencies(rotary_dim, base, self.factor, self.train_len, **bounds)
