"""FIRE: a small network of the distance, divided by the position of the query."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.attention.kernels.operations import loop, pick, put
from posenc_jax.attention.kernels.program import in_kernel
from posenc_jax.base.derivatives import own_gradient
from posenc_jax.protocol.bounds import CONTEXT, Positive, Size
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
    if in_kernel():
        gain, offset, weight = (a.reshape(1, 1, 1, len(w2)) for a in (w1[:1], w1[1:], w2))
        return _unit_by_unit(z[:, None], gain, offset, weight)
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
    return fire_network(fire_progress(c, threshold, q_pos, k_pos), w1, w2)


@own_gradient
def _unit_by_unit(
    z: Float[Array, '1 1 T S'],
    gain: Float[Array, '1 1 1 width'],
    offset: Float[Array, '1 1 1 width'],
    weight: Float[Array, '1 1 1 width'],
) -> Float[Array, '1 1 T S']:
    """The network of one head, one hidden unit after the other. A kernel does not hold the hidden
    units of all pairs at once.
    """

    def step(n, found):
        a, b, c = (pick(of, 3, n)[..., None] for of in (gain, offset, weight))
        return found + c * jnp.maximum(a * z + b, 0.0)

    return loop(gain.shape[3], step, jnp.zeros_like(z))


def _unit_by_unit_bwd(inputs, g):
    z, *weights = inputs

    def step(n, sums):
        d_z, *d_weights = sums
        a, b, c = (pick(of, 3, n)[..., None] for of in weights)
        hidden = a * z + b
        d_hidden = jnp.where(hidden > 0, g * c, 0.0)
        of_pairs = d_hidden * z, d_hidden, g * jnp.maximum(hidden, 0.0)
        totals = [of.sum((2, 3))[..., None] for of in of_pairs]
        return d_z + d_hidden * a, *(put(one, 3, n, d) for one, d in zip(totals, d_weights))

    return loop(weights[0].shape[3], step, tuple(map(jnp.zeros_like, inputs)))


_unit_by_unit.defvjp(lambda *inputs: (_unit_by_unit(*inputs), inputs), _unit_by_unit_bwd)


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
        uniform = lambda shape, bound: jax.random.uniform(
            rngs.params(), shape, jnp.float32, -bound, bound
        )
        self.threshold = threshold
        self.c = nnx.Param(jnp.float32(0.1), axes=())
        self.mult = nnx.Param(jnp.float32(1.0), axes=())
        # W1 and b1, whose fan-in is 1.
        self.w1 = nnx.Param(uniform((2, width), 1.0), axes=(None, None))
        self.w2 = nnx.Param(uniform((width, heads), width**-0.5), axes=(None, 'heads'))

    def bias(self, q_pos, k_pos):
        threshold = self.mult[...] * self.threshold
        return fire_bias(self.c[...], threshold, self.w1[...], self.w2[...], q_pos, k_pos)
