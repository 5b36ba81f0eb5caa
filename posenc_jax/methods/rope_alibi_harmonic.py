"""RoPE with a harmonic penalty of the distance; the paper gives no formula, this one is ours."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.products import over_batch
from posenc_jax.methods.alibi import alibi_slopes
from posenc_jax.methods.kerple import clamp_through
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.bounds import CONTEXT, Base, NonNegative
from posenc_jax.protocol.encoding import Constant, Encoding
from posenc_jax.protocol.families import signed_distance
from posenc_jax.protocol.registry import Card, register

Mode = Literal['distance', 'heads', 'product']
MODES = ('distance', 'heads', 'product')


def rope_alibi_harmonic_number(x: Float[Array, '...']) -> Float[Array, '...']:
    """The harmonic number `digamma(x + 1) + gamma` of real x >= 0, float32; 0 at 0.

    For whole x it is `1 + 1/2 + ... + 1/x`. It is the asymptotic series at x + 4 minus
    `1/(x+1) + ... + 1/(x+4)`; the first neglected term of the series is below 3e-8. This needs no
    table, takes a fifth of the time of `jax.scipy.special.digamma` on CPU and is more accurate.
    """
    y = x + 4.5
    r = 1.0 / (y * y)
    tail = r * (1 / 24 - r * (7 / 960 - r * (31 / 8064)))
    series = jnp.log(y) + np.float32(np.euler_gamma) + tail
    p = x * (x + 5.0)
    # The four fractions, first with last.
    return series - (2.0 * x + 5.0) * (1.0 / (p + 4.0) + 1.0 / (p + 6.0))


def rope_alibi_harmonic_penalty(
    slopes: Float[Array, 'N'],
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
    *,
    linear: bool = False,
) -> Float[Array, '#B N T S']:
    """`m_h H(|p_i - p_j|)` with the harmonic number H, or `m_h |p_i - p_j|` if `linear`."""
    distance = jnp.abs(signed_distance(q_pos, k_pos)).astype(jnp.float32)
    return (
        slopes.astype(jnp.float32)[:, None, None]
        * (distance if linear else rope_alibi_harmonic_number(distance))[:, None]
    )


@register(
    'rope_alibi_harmonic',
    kind='encoding',
    card=Card(
        name='RoPE x ALiBi, harmonic',
        example='rope_alibi_harmonic()',
        use_when=('You want rotary positions with a mild penalty of the distance, in a new model.'),
        share='model',
        relative=True,
    ),
)
class RoPEALiBiHarmonic(Encoding):
    """RoPE and a harmonic penalty of the distance; acts on projections and logits.

    `logit_ij = R(i theta) q_i . R(j theta) k_j / sqrt(H) - w m_h H_d`, `H_d = 1 + 1/2 + ... + 1/d`,
    `d = |i - j|`. That is 'distance'; m_h are ALiBi's slopes. 'heads' subtracts `w d / h`, a
    harmonic series of slopes over the heads h = 1 .. N. 'product' divides the logits of the earlier
    parts by `1 + w m_h H_d`. w = 0 is RoPE. Differs from the paper: only its abstract was
    available. It names a factored combination of RoPE and ALiBi with a harmonic series and does not
    define it. All three modes are our interpretations, not a reproduction. If N is not a power of
    two, m_h are ALiBi's slopes for such an N and not 2^(-8h/N).

    Args:
      mode: 'distance', 'heads' or 'product'.
      weight: w, at least 0.
      learn_weight: trains one w per head, held at 0 or more when used, with the gradient of the
        identity.
      base: base of the rotary frequencies.
      heads, head_dim: N, H, from the model.

    Raises:
      ValueError: arguments that `rope` refuses.

    Reference: Li, arXiv 2410.18441.

    Example:
      >>> import posenc_jax as pj
      >>> pj.make('rope_alibi_harmonic(mode="heads")', heads=4, head_dim=8).slopes[...].round(
      ...     3
      ... ).tolist()
      [1.0, 0.5, 0.333, 0.25]
    """

    traits = frozenset({'rotates'})

    def __init__(
        self,
        mode: Mode = 'distance',
        weight: NonNegative = 1.0,
        learn_weight: bool = False,
        base: Base = 10000.0,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
    ):
        self.mode = mode
        self.rotary = Rotary(base=base, head_dim=head_dim)
        slopes = 1.0 / np.arange(1, heads + 1) if mode == 'heads' else alibi_slopes(heads)
        kind = nnx.Param if learn_weight else Constant
        self.slopes = Constant(jnp.asarray(slopes, jnp.float32), axes=('heads',))
        self.weight = kind(jnp.full(heads, weight, jnp.float32), axes=('heads',))

    def project(self, q, k, v, tq, tk, x=None):
        return self.rotary.project(q, k, v, tq, tk, x)

    def logits(self, s, q, k, tq, tk, seen, carry):
        slopes = clamp_through(self.weight[...], 0.0) * self.slopes[...]
        penalty = rope_alibi_harmonic_penalty(slopes, tq.pos, tk.pos, linear=self.mode == 'heads')
        penalty = over_batch(penalty, s.shape[0])
        return (s / (1.0 + penalty) if self.mode == 'product' else s - penalty), carry
