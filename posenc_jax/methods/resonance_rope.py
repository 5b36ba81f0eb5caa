"""Resonance RoPE: rotary wavelengths that are whole numbers of tokens."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from posenc_jax.base.double import Double
from posenc_jax.base.phases import TWO_PI
from posenc_jax.methods.frequency_rule import STATIC
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.families import Frequencies
from posenc_jax.protocol.registry import Card, register


def resonance_rope_frequencies(
    inv_freq: Float[np.ndarray, 'F'] | Double,
) -> Float[np.ndarray, 'F'] | Double:
    """`2 pi / round(2 pi / theta_t)`: frequencies whose wavelengths are whole numbers, halves
    rounded to even. A plane that does not rotate stays as it is.

    Args:
      inv_freq: radians per position, at most 4 pi / 3. A `Double` gives a `Double`.

    Raises:
      ValueError: a frequency whose wavelength would be rounded to 0 or 1 token, where positions
        have no effect, or one that is negative. A `Double` is not checked.

    Example:
      >>> (
      ...     2 * np.pi / resonance_rope_frequencies(np.array([1.0, 0.1, 0.01, 0.0]))[:3]
      ... ).round().tolist()
      [6.0, 63.0, 628.0]
    """
    if isinstance(inv_freq, Double):
        wave = TWO_PI / inv_freq
        near = jnp.round(wave.high)
        return TWO_PI / (Double.of(near) + jnp.round((wave.high - near) + wave.low))
    turning = inv_freq != 0
    wave = np.round(TWO_PI / np.where(turning, inv_freq, 1.0))
    if (wave < 2).any():
        wrong = inv_freq[np.argmax(wave < 2)]
        raise ValueError(
            'resonance_rope: a wavelength must be at least 2 tokens, so a frequency is positive '
            f'and at most {TWO_PI / 1.5:.4g} radians, got {wrong:.4g}'
        )
    return np.where(turning, TWO_PI / wave, 0.0)


@register(
    'resonance_rope',
    kind='frequencies',
    card=Card(
        **STATIC,
        name='Resonance RoPE',
        example='rope(freqs=resonance_rope(freqs=ntk_aware(factor=4.0)))',
        use_when=(
            'You train a rotary model and read longer texts; to compare with plain RoPE, '
            'since a measured claim is partly contrary.'
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class ResonanceRoPE:
    """Rounds every rotary wavelength to a whole number of tokens.

    `theta'_t = 2 pi / round(2 pi / theta_t)`. So a plane meets the same angles again and again, and
    where its wavelength is below the trained length, later positions have angles that were trained.
    It rounds the frequencies of another rule, after that rule has scaled them, and keeps its
    temperature. Even the highest frequency changes, from 1 to 2 pi / 6, so weights that were
    trained with another rule need tuning. With positions that are fractions the angles do not
    repeat. Differs from the paper: nothing; where the rule follows the current length, wavelengths
    are rounded at every length. The first positions of a rule that has `start` keep the plain
    frequencies, which are not rounded.

    Args:
      freqs: a rule such as `yarn(factor=4.0)`; None for the plain theta of the encoding.

    Raises:
      ValueError: a rule with a wavelength below 1.5 tokens.

    Reference: Wang, Kobyzev, Lu, Rezagholizadeh, Liu, arXiv 2403.00071.

    Example:
      >>> ResonanceRoPE()(8, 10000.0)[0].round(6).tolist()
      [1.047198, 0.099733, 0.010005, 0.001]
    """

    spec_kind: ClassVar[str] = 'frequencies'

    freqs: Frequencies | None = None

    @property
    def uses_length(self) -> bool:
        return self.freqs is not None and self.freqs.uses_length

    @property
    def start(self) -> int:
        return getattr(self.freqs, 'start', 0)

    @property
    def switch(self) -> int | None:
        return getattr(self.freqs, 'switch', None)

    def __call__(self, rotary_dim, base, length=None):
        if self.freqs is None:
            return resonance_rope_frequencies(rope_frequencies(rotary_dim, base)), 1.0
        inv_freq, temperature = self.freqs(rotary_dim, base, length)
        return resonance_rope_frequencies(inv_freq), temperature
