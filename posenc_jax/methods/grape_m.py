"""Multiplicative GRAPE: rotations whose frequencies, or whole planes, are trained."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.methods.rope import rope_frequencies, rotate
from posenc_jax.protocol.bounds import CONTEXT, Base, Size
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register

# The parameter is this many times the logarithm of a frequency, so that a step of an optimizer
# whose steps do not follow the size of a gradient moves a frequency this many times less.
_SLOWER = 16.0
_PARALLEL = 1e-12  # the squared sine of the angle between a and b below which they are parallel


def grape_m_frequencies(
    log_freq: Float[Array, '... F'], slower: float = _SLOWER
) -> Float[Array, '... F']:
    """`theta_t = exp(log_freq_t / slower)`, radians per position, float32."""
    return jnp.exp(log_freq.astype(jnp.float32) / slower)


def grape_m_turn(
    x: Float[Array, '... H'],
    a: Float[Array, '... H'],
    b: Float[Array, '... H'],
    omega: Float[Array, '...'],
    pos: Num[Array, '...'],
) -> Float[Array, '... H']:
    """`exp(pos omega L) x` with `L = a b^T - b a^T`, in O(H) and float32 inside.

    With s the area that a and b span, this is `x + sin(t s)/s L x + (1 - cos(t s))/s^2 L^2 x`, t =
    pos omega. L does not change if a multiple of a is added to b, so b is made orthogonal to a
    first. Where both are parallel, `t L x` takes the place of the sine, so that gradients reach a
    and b there too.

    Args:
      x: vectors, e.g. queries [B, L, heads, H].
      a, b: span the plane; `omega` multiplies its frequency s. All broadcast against `x`.
      pos: positions, one per vector; broadcast against `omega`.

    Returns:
      The shape and dtype of `x`.

    Example:
      >>> a, b = jnp.eye(2)  # a plane of two axes turns by -t
      >>> grape_m_turn(jnp.ones(2), a, b, jnp.float32(1.0), jnp.array(1)).round(4).tolist()
      [1.3818, -0.3012]
    """
    dot = lambda first, second: jnp.sum(first * second, axis=-1, keepdims=True)
    wide, of_a, of_b = x.astype(jnp.float32), dot(a, a), dot(b, b)
    b = b - dot(a, b) / jnp.where(of_a > 0, of_a, 1.0) * a
    area = of_a * dot(b, b)
    flat = area <= _PARALLEL * of_a * of_b
    area = jnp.where(flat, 1.0, area)
    s = jnp.sqrt(area)
    angle = phase(pos, omega[..., None] * s)
    t = pos[..., None].astype(jnp.float32) * omega[..., None]
    sine = jnp.where(flat, t, jnp.sin(angle) / s)
    cosine = jnp.where(flat, 0.5 * t * t, 2.0 * jnp.sin(0.5 * angle) ** 2 / area)
    along_a, along_b = dot(a, wide), dot(b, wide)
    turned = wide + sine * (a * along_b - b * along_a)
    turned = turned - cosine * (of_a * along_b * b + dot(b, b) * along_a * a)
    return turned.astype(x.dtype)


@register(
    'grape_m',
    kind='encoding',
    card=Card(
        name='GRAPE-M',
        example='grape_m()',
        use_when=(
            'You train a rotary model and want the planes and the frequencies to be learned.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class GrapeM(Encoding):
    """Rotates queries and keys in trained planes by angles proportional to their positions.

    `q'_i = G(i) q_i`, `k'_j = G(j) k_j`, `G(n) = exp(n sum_t theta_t L_t)`, L_t skew-symmetric of
    rank 2. So G(m) G(n) = G(m + n), and logits depend on position differences alone. By default
    the planes are those of RoPE with the layout 'half', and the frequencies are trained: `theta_t =
    exp(log_freq_t / 16)`. The factor 16 slows their training down. It starts as RoPE.

    With `planes` the planes are trained too: `G(n) = exp(n omega_r L_r) ... exp(n omega_1 L_1)`,
    `L = a b^T - b a^T` with trained a, b and omega for each key head. It starts as RoPE with its
    fastest planes. Planes commute only as long as they are orthogonal. If training makes several
    planes oblique, logits also depend on where a pair stands. `grape_m_contextual` is the form
    whose positions are sums over the tokens.

    Differs from the paper: the default is the released form, which turns the other way round; with
    the signs of the second half of the features of queries and keys changed, this is the same. Code
    for trained planes was not released; their start as RoPE is ours. The released model norms
    queries and keys behind the rotation, which belongs to the model.

    Args:
      base: of the frequencies at the start.
      per_head: every key head has frequencies of its own; trained planes always do.
      planes: number of trained planes of a head; None trains the frequencies of fixed planes.
      kv_heads, head_dim: from the model.

    Raises:
      ValueError: an odd head width; more planes than half of it.

    Reference: Zhang, Chen, Liu, Qin, Yuan, Xu, Yuan, Gu, Yao, arXiv 2512.07805.
    """

    traits = frozenset({'rotates'})

    def __init__(
        self,
        base: Base = 10000.0,
        per_head: bool = False,
        planes: Size | None = None,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
    ):
        theta, half = rope_frequencies(head_dim, base), head_dim // 2
        self.head_dim = head_dim
        self.kv_heads = kv_heads if per_head or planes is not None else None
        if planes is None:
            start = jnp.asarray(_SLOWER * np.log(theta), jnp.float32)
            shape, axes = ((kv_heads, half), ('kv_heads', None)) if per_head else ((half,), (None,))
            self.log_freq = nnx.Param(jnp.broadcast_to(start, shape), axes=axes)
            return
        if planes > half:
            raise ValueError(
                f'grape_m: planes={planes}, and heads of width {head_dim} have {half} orthogonal '
                f'planes at most; the nearest is {half}'
            )
        every = lambda a: jnp.broadcast_to(a.astype(jnp.float32), (kv_heads, *a.shape))
        unit = jnp.arange(planes)[:, None] == jnp.arange(head_dim)
        axes = 'kv_heads', None, None
        self.a = nnx.Param(every(jnp.roll(unit, half, axis=1)), axes=axes)
        self.b = nnx.Param(every(unit), axes=axes)
        self.omega = nnx.Param(every(jnp.asarray(theta[:planes])), axes=axes[:2])

    def rotate(self, x: Float[Array, 'B L heads H'], pos: Num[Array, '#B L']):
        """Queries or keys rotated to these positions."""
        freq = grape_m_frequencies(self.log_freq[...])
        if freq.ndim == 1:
            return rotate(x, phase(pos, freq)[:, :, None])
        angles = phase(pos[:, :, None], freq)
        return rotate(x, jnp.repeat(angles, x.shape[2] // len(freq), axis=2))

    def project(self, q, k, v, tq, tk, x=None):
        for tok in (tq, tk):
            if tok.pos.ndim != 2:
                raise ValueError(
                    f'grape_m takes one position per token, got positions of shape {tok.pos.shape}'
                )
        if q.shape[3] != self.head_dim or self.kv_heads not in (None, k.shape[2]):
            heads = '' if self.kv_heads is None else f' and {self.kv_heads} key heads'
            raise ValueError(
                f'grape_m was built for head_dim={self.head_dim}{heads}, got vectors of width '
                f'{q.shape[3]} and {k.shape[2]} key heads'
            )
        return self.rotate(q, tq.pos), self.rotate(k, tk.pos), v, tq, tk


class TrainedPlanes(GrapeM, where=lambda given: given['planes'] is not None):
    """Multiplicative GRAPE whose planes are trained."""

    def rotate(self, x, pos):
        kv_heads = self.omega.shape[0]
        grouped = x.reshape(*x.shape[:2], kv_heads, -1, x.shape[-1]).astype(jnp.float32)

        def turn(x, plane):
            a, b, omega = (jnp.expand_dims(of, 1) for of in plane)  # beside every query head
            return grape_m_turn(x, a, b, omega, pos[:, :, None, None]), None

        planes = [jnp.swapaxes(of[...], 0, 1) for of in (self.a, self.b, self.omega)]
        return jax.lax.scan(turn, grouped, planes)[0].reshape(x.shape).astype(x.dtype)
