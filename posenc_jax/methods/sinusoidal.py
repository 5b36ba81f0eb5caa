"""Sinusoidal absolute encoding, in the conventions of the code bases that use it."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.protocol.bounds import Count
from posenc_jax.protocol.errors import check_choice, check_number
from posenc_jax.protocol.families import Embedding
from posenc_jax.protocol.registry import Card, register

Style = Literal['vaswani', 't2t', 'fairseq', 'halves']
STYLES = ('vaswani', 't2t', 'fairseq', 'halves')


def sinusoidal_frequencies(
    waves: int, style: Style = 'vaswani', base: float = 10000.0, min_timescale: float = 1.0
) -> np.ndarray:
    """Radians per position of each wave, float64 [waves]: geometric from 1 to about 1 / base.

    `base^(-m/waves)` for 'vaswani' and 'halves'; `base^(-m/(waves-1))`, which ends exactly at 1 /
    base, for 't2t' and 'fairseq'. With s = `min_timescale`, 't2t' has `s (base/s)^(-m/(waves-1))`,
    from s to s^2 / base. Here s multiplies the frequencies as in tensor2tensor, although a larger
    smallest period would have to divide them.

    Raises:
      SpecError, ValueError: unknown style; a base that is not above s, or an s that is not
        positive, or not 1 in another style.
    """
    check_choice('sinusoidal style', style, STYLES)
    check_number('sinusoidal min_timescale', min_timescale, above=0)
    check_number('sinusoidal base', base)
    if min_timescale != 1 and style != 't2t':
        raise ValueError(
            f"sinusoidal min_timescale is of style 't2t' alone, {style!r} has 1, got "
            f'{min_timescale}'
        )
    if base <= min_timescale:
        raise ValueError(
            f'sinusoidal base must be above min_timescale = {min_timescale}, got {base}'
        )
    steps = waves if style in ('vaswani', 'halves') else max(waves - 1, 1)
    return min_timescale * (float(base) / min_timescale) ** (
        -np.arange(waves, dtype=np.float64) / steps
    )


def sinusoidal_table(
    pos: Num[Array, '#B L *P'],
    width: int,
    *,
    style: Style = 'vaswani',
    base: float = 10000.0,
    min_timescale: float = 1.0,
) -> Float[Array, '#B L D']:
    """Position vectors, float32, with accurate phases at every position.

    P components share the width evenly, one code after the other. Remaining features are zero.

    Args:
      pos: positions [#B, L] or [#B, L, P].
      width: D, at least 2 P.
      style: 'vaswani' interleaves sines and cosines, the others put the sines of a component before
        its cosines.
      base, min_timescale: see `sinusoidal_frequencies`.

    Raises:
      ValueError: no room for one wave per component; as `sinusoidal_frequencies`.
    """
    if pos.ndim == 2:
        pos = pos[..., None]
    components = pos.shape[-1]
    waves = width // (2 * components)
    if waves < 1:
        raise ValueError(
            f'sinusoidal: {components} position components need a width >= {2 * components}, got '
            f'{width}'
        )
    angle = phase(pos, sinusoidal_frequencies(waves, style, base, min_timescale))
    pair = jnp.sin(angle), jnp.cos(angle)
    code = jnp.stack(pair, -1) if style == 'vaswani' else jnp.concatenate(pair, -1)
    code = code.reshape(*pos.shape[:2], components * 2 * waves)
    return jnp.pad(code, ((0, 0), (0, 0), (0, width - code.shape[-1])))


@register(
    'sinusoidal',
    kind='encoding',
    card=Card(
        name='sinusoidal positions',
        example='sinusoidal()',
        use_when=(
            'You want the baseline of the first transformer, without parameters, within '
            'the trained length.'
        ),
        share='model',
    ),
)
class Sinusoidal(Embedding):
    """Adds sines and cosines of the position to the token vectors.

    `x_p + PE_p`, `PE_p[2m] = sin(p w_m)`, `PE_p[2m+1] = cos(p w_m)`, `w_m = base^(-2m/D)`. The
    model scales token vectors by sqrt(D) before. Differs from the paper: nothing for 'vaswani'. The
    other styles are those of the code bases: 'halves' all sines first (Marian, BART); 't2t' the
    same order with exponents m/(D/2-1) and a zero column for odd D; 'fairseq' as 't2t' with
    positions that start at `padding_idx + 1`. Padding gets a zero vector in every style. Positions
    with P components share the width, as in tensor2tensor.

    Args:
      style: 'vaswani', 't2t', 'fairseq' or 'halves'.
      base: 1 / base is the lowest frequency ('t2t' calls it max_timescale).
      min_timescale: of 't2t' only, see `sinusoidal_frequencies`.
      start: added to every position ('t2t' calls it start_index).
      padding_idx: of 'fairseq' only.

    Raises:
      ValueError: base not above min_timescale, min_timescale not positive, or not 1 in another
        style than 't2t'; at call, positions with several components under 'fairseq', or too small a
        width.

    Reference: Vaswani et al., arXiv 1706.03762.

    Example:
      >>> import jax.numpy as jnp, posenc_jax as pj
      >>> pj.make('sinusoidal()').embed(jnp.zeros((1, 2, 4)), pj.Tokens.of(length=2))[0, 0].tolist()
      [0.0, 1.0, 0.0, 1.0]
    """

    def __init__(
        self,
        style: Style = 'vaswani',
        base: float = 10000.0,
        start: int = 0,
        padding_idx: Count = 1,
        min_timescale: float = 1.0,
    ):
        sinusoidal_frequencies(1, style, base, min_timescale)  # checks all three
        self.style, self.base, self.min_timescale = style, base, min_timescale
        self.start = start + (padding_idx + 1 if style == 'fairseq' else 0)

    def table(self, tok, width):
        if self.style == 'fairseq' and tok.pos.ndim > 2:
            raise ValueError(
                f"sinusoidal style 'fairseq' has no {tok.pos.shape[-1]}-component form; 't2t' has"
            )
        waves = dict(style=self.style, base=self.base, min_timescale=self.min_timescale)
        return sinusoidal_table(tok.pos + self.start, width, **waves)
