"""KERPLE: biases from conditionally positive definite kernels of the distance."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.attention.distances import float_distance, log1p_of_product
from posenc_jax.protocol.bounds import CONTEXT
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.families import Bias, check_heads
from posenc_jax.protocol.registry import Card, register

Kernel = Literal['log', 'power', 'log3', 'bias_wht', 'weight']

LOW, HIGH = 0.01, 2.0
# Parameters of each kernel. True marks the exponent of a distance, which must be at most 2 for the
# kernel to be conditionally positive definite.
KERNELS: dict[str, dict[str, bool]] = {
    'log': dict(a=False, p=False),
    'power': dict(a=False, p=True),
    'log3': dict(r1=False, r2=False, r3=True),
    'bias_wht': dict(a=False, p=True, wa=False, wp=True),
    'weight': dict(wa=False, wp=True),
}


def clamp_through(x: Float[Array, '...'], low: float, high: float = jnp.inf) -> Float[Array, '...']:
    """`clip(x, low, high)` with the gradient of the identity.

    So gradients can move a parameter that is out of bounds back inside.
    """
    clipped = jnp.clip(x, low, high)
    # The value is the clipped one itself; x - x would round it.
    return jax.lax.stop_gradient(clipped) + (x - jax.lax.stop_gradient(x))


def distance_power(
    distance: Float[Array, '...'], exponent: Float[Array, '...']
) -> Float[Array, '...']:
    """`distance ** exponent` for distance >= 0, exactly 0 at 0 with zero gradients there."""
    apart = distance > 0
    # Not `**`, which takes several times as long on a CPU.
    return jnp.where(apart, jnp.exp(exponent * jnp.log(jnp.where(apart, distance, 1.0))), 0.0)


def kerple_log(
    a: Float[Array, 'N'], p: Float[Array, 'N'], distance: Float[Array, '#B T S']
) -> Float[Array, '#B N T S']:
    """`-p ln(1 + a d)`.

    Example:
      >>> kerple_log(jnp.ones(1), jnp.ones(1), jnp.array([[[0.0, 1.0]]]))[0, 0].round(4)
      Array([[-0.    , -0.6931]], dtype=float32)
    """
    return -_per_head(p) * log1p_of_product(_per_head(a)[None], distance[:, None])


def kerple_power(
    a: Float[Array, 'N'], p: Float[Array, 'N'], distance: Float[Array, '#B T S']
) -> Float[Array, '#B N T S']:
    """`-a d^p`; p = 1 is ALiBi with trained slopes."""
    return -_per_head(a) * distance_power(distance[:, None], _per_head(p))


def kerple_log3(
    r1: Float[Array, 'N'],
    r2: Float[Array, 'N'],
    r3: Float[Array, 'N'],
    distance: Float[Array, '#B T S'],
) -> Float[Array, '#B N T S']:
    """`-r1 ln(1 + r2 d^r3)`; r3 = 1 is `kerple_log`."""
    return -_per_head(r1) * jnp.log1p(
        _per_head(r2) * distance_power(distance[:, None], _per_head(r3))
    )


def kerple_weight(
    wa: Float[Array, 'N'], wp: Float[Array, 'N'], distance: Float[Array, '#B T S']
) -> Float[Array, '#B N T S']:
    """`exp(-wa d^wp)`, the factor of the logits."""
    return jnp.exp(kerple_power(wa, wp, distance))


def _per_head(x):
    return x.astype(jnp.float32)[:, None, None]


@register(
    'kerple',
    kind='encoding',
    card=Card(name='KERPLE', example='kerple()', share='model', relative=True, needs_training=True),
)
class Kerple(Bias):
    """Penalises distance by a kernel with trained parameters per head; acts on the logits.

    `logit_ij = q_i . k_j / sqrt(H) - p_h ln(1 + a_h |i - j|)`. That is 'log'. With d = |i - j|,
    'power' adds `-a d^p` and 'log3' adds `-r1 ln(1 + r2 d^r3)`. 'weight' adds nothing; it
    multiplies the logits of the earlier parts of the chain by `exp(-wa d^wp)`. 'bias_wht'
    multiplies in the same way and then adds the power bias. Any other bias after the weight is
    written as a chain: `kerple(kernel="weight") | kerple()`. Parameters are held at 0.01 or more,
    and exponents of a distance at 2 or less. Differs from the paper: the official code overwrites
    parameters that leave these bounds; here they are clamped when used, with the gradient of the
    identity.

    Args:
      kernel: 'log', 'power', 'log3', 'bias_wht' or 'weight'.
      fixed: names of parameters that are not trained and stay 1, e.g. ('p',).
      heads: N, from the model.

    Raises:
      ValueError: a fixed name that the kernel does not have.

    Reference: Chi, Fan, Ramadge, Rudnicky, arXiv 2205.09921.
    """

    def __init__(
        self,
        kernel: Kernel = 'log',
        fixed: tuple[str, ...] = (),
        heads: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        for name in fixed:
            check_choice(f'a fixed parameter of kerple {kernel!r}', name, KERNELS[kernel])
        self.kernel = kernel
        raw = {}
        for name in KERNELS[kernel]:
            if name in fixed:
                raw[name] = Constant(jnp.ones(heads, jnp.float32), axes=('heads',))
            else:
                high = 2.0 if name in ('p', 'r3', 'wp') else 1.0
                drawn = jax.random.uniform(rngs.params(), (heads,), jnp.float32, 0.0, high)
                raw[name] = nnx.Param(drawn, axes=('heads',))
        self.raw = nnx.Dict(raw)

    def parameters(self) -> dict[str, Float[Array, 'N']]:
        """The parameters in use, inside their bounds."""
        bounded = KERNELS[self.kernel]
        return {
            name: clamp_through(self.raw[name][...], LOW, HIGH if bounded[name] else jnp.inf)
            for name in bounded
        }

    def bias(self, q_pos, k_pos):
        distance = jnp.abs(float_distance(q_pos, k_pos))
        values = self.parameters()
        if self.kernel == 'weight':
            return jnp.zeros((len(distance), len(values['wa']), *distance.shape[1:]), jnp.float32)
        if self.kernel == 'log':
            return kerple_log(values['a'], values['p'], distance)
        if self.kernel == 'log3':
            return kerple_log3(values['r1'], values['r2'], values['r3'], distance)
        return kerple_power(values['a'], values['p'], distance)

    def logits(self, s, q, k, tq, tk, seen, carry):
        values = self.parameters()
        if 'wa' in values:
            check_heads('kerple', values['wa'], s)
            distance = jnp.abs(float_distance(tq.pos, tk.pos))
            s = s * kerple_weight(values['wa'], values['wp'], distance)
        return super().logits(s, q, k, tq, tk, seen, carry)
