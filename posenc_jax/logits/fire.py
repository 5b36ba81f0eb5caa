"""FIRE: a small network of the distance, divided by the position of the query."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.core.families import Bias, signed_distance
from posenc_jax.core.registry import Card, Promises, check_number, register
from posenc_jax.core.spec import CONTEXT

_EPSILON = 1e-6  # as in the official code: keeps the quotient finite where both transforms are 0


def fire_transform(x: Float[Array, '...'], c: Float[Array, '']) -> Float[Array, '...']:
    """`psi(x) = ln(|c x| + 1)`.

    Example:
      >>> fire_transform(jnp.array([0.0, 5.0]), jnp.float32(0.1)).round(4)
      Array([0.    , 0.4055], dtype=float32)
    """
    return jnp.log1p(jnp.abs(c * x))


def fire_progress(
    c: Float[Array, ''],
    threshold: Float[Array, ''],
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
) -> Float[Array, '#B T S']:
    """`psi(i - j) / psi(max(i, threshold))`: 0 at the query, about 1 at its first key.

    Example:
      >>> z = fire_progress(
      ...     jnp.float32(0.1), jnp.float32(8.0), jnp.array([[5]]), jnp.array([[5, 0]])
      ... )
      >>> [round(float(x), 4) for x in z[0, 0]]
      [0.0, 0.6898]
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

    Example:
      >>> fire_network(jnp.array([[[0.5]]]), jnp.array([[1.0], [1.0]]), jnp.array([[2.0]])).tolist()
      [[[[3.0]]]]
    """
    dot = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    flat = z.reshape(-1)
    hidden = jax.nn.relu(dot(w1.T, jnp.stack([flat, jnp.ones_like(flat)])))
    return jnp.moveaxis(dot(w2.T, hidden).reshape(-1, *z.shape), 0, 1)


@register(
    'fire',
    kind='encoding',
    card=Card(
        name='FIRE',
        title='Functional Interpolation for Relative Positions Improves Long Context Transformers',
        arxiv='2310.04418',
        door='score',
        equation='logit_ij = q_i . k_j / sqrt(H) + f(psi(i - j) / psi(max(i, T)))_h, psi(x) = '
        'ln(|c x| + 1)',
        source='mcleish7/arithmetic (the appendix code of the paper)',
        authors='Li, Shanda and You, Chong and Guruganesh, Guru and Ainslie, Joshua and Ontanon, '
        'Santiago and '
        'Zaheer, Manzil and Sanghai, Sumit and Yang, Yiming and Kumar, Sanjiv and Bhojanapalli, '
        'Srinadh',
        year=2024,
        example='fire(threshold=8)',
        share='layer',
        causal_only=True,
        promises=Promises(needs_training=True),
    ),
)
class FIRE(Bias):
    """Adds a trained function of the distance relative to the query's position, to the logits.

    `b_ij = W2 relu(W1 z_ij + b1)`, `z_ij = psi(i - j) / (psi(max(i, |mult| T)) + 1e-6)`, `psi(x) =
    ln(|c x| + 1)`; c and mult are trained. It acts on the logits. Differs from the paper: the
    output bias b2 is left out, since the softmax cancels it. FIRE-S (`fire_s`) shares one network
    between the layers (`share='model'` in the config). For the paper's random training positions
    use `randomized_pe(...) | fire()`.

    Args:
      width: hidden units.
      threshold: T, constant; queries before `|mult| T` divide distances by `psi(|mult| T)`.
      heads: N, from the model.

    Raises:
      ValueError: width below 1, threshold not positive.

    Reference: Li et al., arXiv 2310.04418.

    Example:
      >>> import posenc_jax as pj
      >>> pj.make('fire(width=16)', heads=4).w2.shape
      (16, 4)
    """

    def __init__(
        self,
        width: int = 32,
        threshold: float = 512.0,
        heads: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if width < 1:
            raise ValueError(f'fire width must be at least 1, got {width}')
        check_number('fire threshold', threshold, above=0)
        uniform = lambda shape, bound: jax.random.uniform(
            rngs.params(), shape, jnp.float32, -bound, bound
        )
        self.threshold = threshold
        self.c = nnx.Param(jnp.float32(0.1), axes=())
        self.mult = nnx.Param(jnp.float32(1.0), axes=())
        self.w1 = nnx.Param(
            uniform((2, width), 1.0), axes=(None, None)
        )  # W1 and b1; their fan-in is 1
        self.w2 = nnx.Param(uniform((width, heads), width**-0.5), axes=(None, 'heads'))

    def bias(self, q_pos, k_pos):
        z = fire_progress(self.c[...], self.mult[...] * self.threshold, q_pos, k_pos)
        return fire_network(z, self.w1[...], self.w2[...])
