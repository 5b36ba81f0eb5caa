"""FIRE: a small network of the distance, divided by the position of the query."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.attention.distances import float_distance, log1p_of_product
from posenc_jax.attention.kernels.program import in_kernel
from posenc_jax.base.derivatives import own_gradient
from posenc_jax.protocol.bounds import CONTEXT, Positive, Size
from posenc_jax.protocol.encoding import drawn_uniform
from posenc_jax.protocol.families import Bias, signed_distance
from posenc_jax.protocol.registry import Card, register

_EPSILON = 1e-6  # as in the official code: keeps the quotient finite where both transforms are 0


def fire_transform(x: Float[Array, '...'], c: Float[Array, '']) -> Float[Array, '...']:
    """`psi(x) = ln(|c x| + 1)`."""
    return jnp.log1p(jnp.abs(c * x))


def fire_progress(
    c: Float[Array, ''],
    threshold: Float[Array, ''],
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
) -> Float[Array, '#B T S']:
    """`psi(i - j) / psi(max(i, threshold))`: 0 at the query, about 1 at its first key.

    Example:
      >>> c, threshold = jnp.float32(0.1), jnp.float32(8.0)
      >>> fire_progress(c, threshold, jnp.array([[5]]), jnp.array([[0]])).round(4).item()
      0.6898
    """
    distance = signed_distance(q_pos, k_pos).astype(jnp.float32)
    reach = jnp.maximum(q_pos.astype(jnp.float32), jnp.abs(threshold))
    return fire_transform(distance, c) / (fire_transform(reach, c) + _EPSILON)[..., None]


def fire_network(
    z: Float[Array, '#B T S'], w1: Float[Array, '2 width'], w2: Float[Array, 'width N']
) -> Float[Array, '#B N T S']:
    """`W2 relu(W1 z + b1)` in float32; `w1` holds W1 and b1 as rows.

    Both layers are matrix products with all pairs along the long axis. The sums over pairs in their
    gradients are then matrix products too.
    """
    dot = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    flat = z.reshape(-1)
    hidden = jax.nn.relu(dot(w1.T, jnp.stack([flat, jnp.ones_like(flat)])))
    return jnp.moveaxis(dot(w2.T, hidden).reshape(-1, *z.shape), 0, 1)


def fire_bias(
    c: Float[Array, ''],
    threshold: Float[Array, ''],
    w1: Float[Array, '2 width'],
    w2: Float[Array, 'width N'],
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
) -> Float[Array, '#B N T S']:
    """`fire_network` of `fire_progress`, float32, added to the logits.

    Example:
      >>> w1, w2 = jnp.array([[1.0, -1.0], [0.0, 0.5]]), jnp.array([[2.0], [4.0]])
      >>> at = jnp.array([[5]]), jnp.array([[5, 0]])
      >>> fire_bias(jnp.float32(0.1), jnp.float32(8.0), w1, w2, *at).ravel().round(4).tolist()
      [2.0, 1.3796]
    """
    if in_kernel():
        return _in_kernel(c, threshold, w1, w2, q_pos, k_pos)
    return fire_network(fire_progress(c, threshold, q_pos, k_pos), w1, w2)


def _in_kernel(c, threshold, w1, w2, q_pos, k_pos):
    """`fire_bias` of one head in a tile of a kernel."""
    distance = jnp.abs(float_distance(q_pos, k_pos))
    reach = jnp.maximum(q_pos.astype(jnp.float32), jnp.abs(threshold))
    scale = fire_transform(reach, c) + _EPSILON
    logs = log1p_of_product(jnp.abs(c).reshape(1, 1, 1), distance)
    least = jnp.maximum(q_pos.min() - k_pos.max(), k_pos.min() - q_pos.max())
    most = jnp.maximum(q_pos.max() - k_pos.min(), k_pos.max() - q_pos.min())
    transform = lambda x: fire_transform(x.astype(jnp.float32).reshape(1, 1), c)
    ends = transform(jnp.maximum(least, 0)) / scale.max(), transform(most) / scale.min()
    ends = [jax.lax.stop_gradient(z).reshape(1, 1, 1, 1) for z in ends]
    units = (a.reshape(1, 1, 1, len(w2)) for a in (w1[:1], w1[1:], w2))
    return _by_bends(logs[:, None], scale[:, None, :, None], *units, *ends)


@own_gradient
def _by_bends(
    logs: Float[Array, '1 1 T S'],
    scale: Float[Array, '1 1 T 1'],
    gain: Float[Array, '1 1 1 width'],
    offset: Float[Array, '1 1 1 width'],
    weight: Float[Array, '1 1 1 width'],
    low: Float[Array, '1 1 1 1'],
    high: Float[Array, '1 1 1 1'],
) -> Float[Array, '1 1 T S']:
    """The network of one head at `z = logs / scale`, which lies between `low` and `high`.

    It is a line with a bend for each unit that turns on or off between these two, which few units
    do in most tiles: `relu(a z + b) = a max(z, t) + b` for a > 0 and `a z - a max(z, t)` for a < 0,
    with t = -b / a.
    """
    on, bends, at = _units(gain, offset, low, high)
    slope = _sum(on | (bends & (gain < 0)), weight * gain)
    level = _sum(on | (bends & (gain > 0)), weight * offset)

    def step(bend, found):
        return found + _sum(bend, weight * jnp.abs(gain)) * jnp.maximum(
            logs, _sum(bend, at) * scale
        )

    return _over(bends, step, logs * slope) * (1.0 / scale) + level


def _by_bends_fwd(*inputs):
    return _by_bends(*inputs), inputs


def _by_bends_bwd(inputs, g):
    logs, scale, gain, offset, weight, low, high = inputs
    on, bends, at = _units(gain, offset, low, high)
    inverse = 1.0 / scale
    in_total = lambda a: a.sum((2, 3), keepdims=True)
    moments = lambda g: (in_total((g * logs).sum(3, keepdims=True) * inverse), in_total(g))
    of_units = lambda z, one: (weight * z, weight * one, gain * z + offset * one)
    of_all = moments(g)

    def step(bend, sums):
        slopes, *d_units = sums
        above = logs > _sum(bend, at) * scale
        own = moments(jnp.where(above, g, 0.0))
        own = (jnp.where(gain > 0, a, every - a) for a, every in zip(own, of_all))
        d_units = [jnp.where(bend, new, d) for new, d in zip(of_units(*own), d_units)]
        return slopes + jnp.where(above, _sum(bend, weight * jnp.abs(gain)), 0.0), *d_units

    slope = jnp.broadcast_to(_sum(on | (bends & (gain < 0)), weight * gain), g.shape)
    d_units = (jnp.where(on, d, 0.0) for d in of_units(*of_all))
    slopes, *d_units = _over(bends, step, (slope, *d_units))
    d_z = slopes * g
    d_scale = (d_z * logs).sum(3, keepdims=True) * -(inverse**2)
    return d_z * inverse, d_scale, *d_units, None, None


_by_bends.defvjp(_by_bends_fwd, _by_bends_bwd)


def _units(gain, offset, low, high):
    """Which units are on between two numbers, which turn on or off there, and where."""
    ends = gain * low + offset, gain * high + offset
    least, most = jnp.minimum(*ends), jnp.maximum(*ends)
    bends = (least < 0) & (most > 0)
    return least >= 0, bends, -offset / jnp.where(bends, gain, 1.0)


def _sum(chosen, a):
    return jnp.where(chosen, a, 0.0).sum(3, keepdims=True)


def _over(chosen, step, init):
    """`step(unit, state)` for the chosen units one after the other, each as a mask."""
    number = jax.lax.broadcasted_iota(jnp.int32, chosen.shape, 3).astype(jnp.float32)

    def next_one(_, state):
        last, state = state
        later = jnp.where(chosen & (number > last), number, float(chosen.shape[3]))
        unit = later.min(3, keepdims=True)
        return unit, step(number == unit, state)

    count = jnp.where(chosen, 1.0, 0.0).sum().astype(jnp.int32)
    return jax.lax.fori_loop(0, count, next_one, (jnp.full((1, 1, 1, 1), -1.0), init))[1]


@register(
    'fire',
    kind='encoding',
    card=Card(
        name='FIRE',
        example='fire(threshold=8)',
        use_when=(
            'You want a learned bias that depends on the distance as a share of the '
            'length; to compare with KERPLE or ALiBi on text, since two measured claims '
            'are contrary.'
        ),
        share='layer',
        causal_only=True,
        needs_training=True,
    ),
)
class FIRE(Bias):
    """Adds a trained function of the distance relative to the query's position, to the logits.

    `logit_ij = q_i . k_j / sqrt(H) + b_ij`, `b_ij = W2 relu(W1 z_ij + b1)`, `z_ij = psi(i - j) /
    (psi(max(i, |mult| T)) + 1e-6)`, `psi(x) = ln(|c x| + 1)`; c and mult are trained. It acts on
    the logits. Differs from the paper: the output bias b2 is left out, since the softmax cancels
    it. FIRE-S (`fire_s`) shares one network between the layers (`share='model'` in the config). For
    the paper's random training positions use `randomized_pe(...) | fire()`.

    Args:
      width: hidden units.
      threshold: T, constant; queries before `|mult| T` divide distances by `psi(|mult| T)`.
      heads: N, from the model.

    Reference: Li et al., arXiv 2310.04418.
    """

    def __init__(
        self,
        width: Size = 32,
        threshold: Positive = 512.0,
        heads: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.threshold = threshold
        self.c = nnx.Param(jnp.float32(0.1), axes=())
        self.mult = nnx.Param(jnp.float32(1.0), axes=())
        # W1 and b1, whose fan-in is 1.
        self.w1 = drawn_uniform(rngs, (2, width), 1.0, (None, None))
        self.w2 = drawn_uniform(rngs, (width, heads), width**-0.5, (None, 'heads'))

    def bias(self, q_pos, k_pos):
        threshold = self.mult[...] * self.threshold
        return fire_bias(self.c[...], threshold, self.w1[...], self.w2[...], q_pos, k_pos)
