"""RoPE: rotary position embedding, which takes any frequency rule."""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.base.double import Double
from posenc_jax.base.phases import phase
from posenc_jax.protocol.bounds import CONTEXT, Base, Gt, Le
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import check_choice, check_number
from posenc_jax.protocol.families import Frequencies, check_head_dim
from posenc_jax.protocol.length import current_length
from posenc_jax.protocol.registry import Card, register

Layout = Literal['half', 'interleaved']
LAYOUTS = ('half', 'interleaved')


def rope_frequencies(rotary_dim: int, base: float) -> np.ndarray:
    """`theta_t = base^(-2t / rotary_dim)`, t = 0 .. rotary_dim/2 - 1, float64.

    The unit is radians per position.
    Raises:
      ValueError: a width that is odd or below 2, a base below 1 or beyond float32.
    """
    if rotary_dim < 2 or rotary_dim % 2:
        raise ValueError(
            f'a rotary width must be even and at least 2, got {rotary_dim}; the nearest is '
            f'{max(2, rotary_dim // 2 * 2)}'
        )
    # With base 1 all planes have the same frequency. Below 1 frequencies exceed one radian per
    # token and grow with the plane.
    check_number('the base of rotary frequencies', base, least=1)
    return base ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)


def rotate(
    x: Num[Array, '... H'],
    angles: Float[Array, '... F'],
    *,
    layout: Layout = 'half',
    scale: float | Float[Array, '...'] = 1.0,
) -> Num[Array, '... H']:
    """Rotates the first 2F features of `x` in F planes, in float32; others pass through.

    Plane t turns `(a, b)` into `scale (a cos A_t - b sin A_t, a sin A_t + b cos A_t)`.

    Args:
      x: vectors, e.g. queries [B, L, heads, H].
      angles: A, broadcast against the leading axes of `x`, e.g. [B, L, 1, F].
      layout: planes of features (t, t + F), 'half' (NeoX, Llama), or (2t, 2t + 1), 'interleaved'
        (GPT-J, RoFormer).
      scale: multiplies cos and sin; a number, or an array that broadcasts against `angles`.

    Returns:
      The shape and dtype of `x`.

    Raises:
      ValueError: 2F exceeds H; an unknown layout.
    """
    check_choice('layout', layout, LAYOUTS)
    half = angles.shape[-1]
    if 2 * half > x.shape[-1]:
        raise ValueError(
            f'rotate: {half} angles turn {2 * half} features, but x has only {x.shape[-1]}'
        )
    # The barrier keeps XLA from evaluating cos and sin anew for every head.
    cos, sin = jax.lax.optimization_barrier((scale * jnp.cos(angles), scale * jnp.sin(angles)))
    turned = x[..., : 2 * half].astype(jnp.float32)
    if layout == 'half':
        cos, sin = jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)
        partner = jnp.roll(turned, half, axis=-1)
    else:
        pairs = lambda a, b: jnp.stack([a, b], -1).reshape(*a.shape[:-1], 2 * half)
        cos, sin = pairs(cos, cos), pairs(-sin, sin)
        even = np.arange(2 * half) % 2 == 0
        partner = jnp.where(even, jnp.roll(turned, -1, axis=-1), jnp.roll(turned, 1, axis=-1))
    turned = (turned * cos + partner * sin).astype(x.dtype)
    if 2 * half == x.shape[-1]:
        return turned
    return jnp.concatenate([turned, x[..., 2 * half :]], axis=-1)


def rope(
    x: Num[Array, 'B L heads H'],
    positions: Num[Array, '#B #L'],
    base: float | None = None,
    *,
    freqs: Float[np.ndarray, 'F'] | Float[Array, 'F'] | Double | None = None,
    scale: float = 1.0,
    layout: Layout = 'half',
) -> Num[Array, 'B L heads H']:
    """Queries or keys rotated by their positions: `scale R(positions * theta) x`.

    Phases are exact to float32 at any position.

    Args:
      x: queries or keys.
      positions: one for each token, in tokens.
      base: that of the plain frequencies, 10000 unless it is given.
      freqs: theta, radians per position, in place of the plain ones, such as those of
        `yarn_frequencies`. Fewer than H/2 turn the first 2F features; the rest pass through.
      scale: multiplies the rotated features, such as `yarn_temperature`. Logits have its square.
      layout: see `rotate`.

    Raises:
      ValueError: `x` or positions of another rank; both a base and frequencies; more frequencies
        than H/2; an odd H without `freqs`.

    Example:
      >>> x, positions = jnp.ones((1, 1, 1, 4)), jnp.array([[1]])
      >>> rope(x, positions, freqs=np.array([np.pi / 2]), scale=2.0).ravel().round(2).tolist()
      [-2.0, 2.0, 1.0, 1.0]
    """
    if x.ndim != 4 or positions.ndim > 2:
        raise ValueError(
            f'rope takes x of shape [B, L, heads, H] and positions [B, L], got {x.shape} and '
            f'{positions.shape}'
        )
    if base is not None and freqs is not None:
        raise ValueError(f'rope takes a base or frequencies, got base={base} and freqs')
    if freqs is None:
        freqs = rope_frequencies(x.shape[-1], 10000.0 if base is None else base)
    return rotate(x, phase(positions, freqs)[..., None, :], layout=layout, scale=scale)


@register(
    'rope', kind='encoding', card=Card(name='RoPE', example='rope()', share='model', relative=True)
)
class Rotary(Encoding):
    """Rotates queries and keys by angles proportional to their positions.

    `q'_i = R(i theta) q_i`, `k'_j = R(j theta) k_j`, `theta_t = base^(-2t/H)`. So logits depend on
    position differences alone. Differs from the paper: the default layout is 'half'; 'interleaved'
    is the paper's. Both give the same logits after a permutation of the features.

    Args:
      base: base of the frequencies.
      layout: 'half' or 'interleaved', see `rotate`.
      partial: fraction of the head width that is rotated, `int(H * partial)` leading features; the
        rest pass through.
      freqs: a frequency rule such as `yarn(factor=4.0)` in place of the plain theta.
      head_dim: H, from the model.

    Raises:
      ValueError: an odd or empty rotated width.

    Reference: Su, Lu, Pan, Murtadha, Wen, Liu, arXiv 2104.09864.

    Example:
      >>> import jax.numpy as jnp, posenc_jax as pj
      >>> part = pj.make('rope(partial=0.5)', head_dim=8)
      >>> part.rotate(jnp.ones((1, 1, 1, 8)), jnp.array([[1]])).ravel().round(2).tolist()
      [-0.3, 0.99, 1.38, 1.01, 1.0, 1.0, 1.0, 1.0]
    """

    @property
    def traits(self):
        return frozenset({'rotates', 'follows_length'} if self.uses_length else {'rotates'})

    def __init__(
        self,
        base: Base = 10000.0,
        layout: Layout = 'half',
        partial: Annotated[float, Gt(0), Le(1)] = 1.0,
        freqs: Frequencies | None = None,
        head_dim: int = CONTEXT,
    ):
        self.base, self.layout, self.partial = base, layout, partial
        self.freqs, self.head_dim = freqs, head_dim
        self.rotary_dim = int(head_dim * partial)
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ValueError(
                f'rope turns features in pairs: {self.rotary_dim} of head_dim={head_dim} are to '
                f'be rotated (partial={partial}), '
                'expected an even number of at least 2'
            )
        rope_frequencies(self.rotary_dim, base)
        if freqs is not None:  # a rule that does not fit this width says so now
            jax.eval_shape(
                lambda length: freqs(self.rotary_dim, base, length),
                jax.ShapeDtypeStruct((1, 1), jnp.int32),
            )

    def with_rule(self, freqs: Frequencies) -> 'Rotary':
        """This encoding with another frequency rule."""
        return Rotary(self.base, self.layout, self.partial, freqs, self.head_dim)

    @property
    def uses_length(self) -> bool:
        """Whether angles depend on the current length."""
        return self.freqs is not None and self.freqs.uses_length

    def frequencies(self, length: Num[Array, '#B #L'] | None = None):
        """Inverse frequencies and temperature of the rule (see `Frequencies`), or theta and 1."""
        if self.freqs is None:
            return rope_frequencies(self.rotary_dim, self.base), 1.0
        return self.freqs(self.rotary_dim, self.base, length)

    def angles(self, pos: Num[Array, '#B L'], length: Num[Array, '#B #L'] | None = None):
        """Angles [#B, L, F] of these positions, and the temperature for their cos and sin."""
        if pos.ndim != 2:
            raise ValueError(
                f'rope takes one position per token, got {math.prod(pos.shape[2:])} components'
            )
        inv_freq, temperature = self.frequencies(length)
        angles, start = phase(pos, inv_freq), getattr(self.freqs, 'start', 0)
        if start:
            early, plain = pos < start, rope_frequencies(self.rotary_dim, self.base)
            angles = jnp.where(early[..., None], phase(pos, plain), angles)
            temperature = jnp.where(early, 1.0, temperature)
        return angles, temperature

    def rotate(
        self,
        x: Num[Array, 'B L heads H'],
        pos: Num[Array, '#B #L'],
        length: Num[Array, '#B #L'] | None = None,
    ):
        """`x` rotated to these positions.

        `length` is the current length per token, for rules that depend on the length.
        """
        check_head_dim('rope', self.head_dim, x)
        angles, temperature = self.angles(pos, length)
        scale = temperature[..., None, None] if jnp.ndim(temperature) else temperature
        return rotate(x, angles[..., None, :], layout=self.layout, scale=scale)

    def project(self, q, k, v, tq, tk, x=None):
        q_length = k_length = None
        if self.uses_length:
            q_length, k_length = current_length(tq, tk)
        return self.rotate(q, tq.pos, q_length), self.rotate(k, tk.pos, k_length), v, tq, tk
