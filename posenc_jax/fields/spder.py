"""SPDER: a sine that is damped by a root of its argument."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.fields.network import Depth, Perceptron, Width
from posenc_jax.fields.siren import sine_layers
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.bounds import Positive
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, register


@jax.custom_jvp
def root_sine(z: Float[Array, '...']) -> Float[Array, '...']:
    """`sin(z) sqrt(|z|)`, whose derivative `cos(z) sqrt(|z|) + sin|z| / (2 sqrt(|z|))` is 0 at 0;
    JAX would divide 0 by 0 there.
    """
    return jnp.sin(z) * jnp.sqrt(jnp.abs(z))


@root_sine.defjvp
def _root_sine_jvp(primals, tangents):
    (z,), (slope,) = primals, tangents
    size = jnp.abs(z)
    safe = jnp.where(size > 0, size, 1.0)
    root = jnp.sqrt(safe)
    derivative = jnp.cos(z) * root + jnp.sin(size) / (2 * root)
    return root_sine(z), jnp.where(size > 0, derivative, 0.0) * slope


DAMPED = {
    'sqrt': root_sine,
    'arctan': lambda z: jnp.sin(z) * jnp.arctan(z),
    'log': lambda z: jnp.sin(z) * jnp.log1p(jnp.abs(z)),
    'one': jnp.sin,
}


def spder_activation(z: Float[Array, '...'], damping: str = 'sqrt') -> Float[Array, '...']:
    """`sin(z) delta(z)` with delta `sqrt(|z|)`, `arctan(z)`, `ln(1 + |z|)` or 1.

    With the root, the logarithm and 1 it is odd, with the arc tangent even.

    Raises:
      SpecError: an unknown damping.
    """
    return DAMPED[check_choice('spder damping', damping, DAMPED)](z)


@register(
    'spder',
    kind='field',
    card=Card(name='SPDER', example='spder(width=32, layers=2)', needs_training=True),
)
class Spder(Perceptron):
    """A network of damped sines, with the weights of SIREN and no encoding of the coordinates.

    `z = 30 (W x + b)`, `a(z) = sin(z) sqrt(|z|)` in all layers, and a linear head. The factor 30
    multiplies inside both the sine and the root. Differs from the paper: the derivative is exactly
    0 at z = 0, where that of the released code is not a number in float32.

    Args:
      width: units of a hidden layer.
      layers: layers with an activation, the first included.
      damping: 'sqrt', 'arctan' (the authors' choice for sound), 'log', or 'one', which is SIREN.
      omega: factor of the arguments.

    Reference: Shah, Sitawarin, arXiv 2306.15242.

    Example:
      >>> from posenc_jax.fields import make_field
      >>> network = make_field('spder(omega=1.0)', features=2, outputs=1)
      >>> network.activation(jnp.array([0.0, 0.25, 1.0])).round(2).tolist()
      [0.0, 0.12, 0.84]
    """

    def __init__(
        self,
        width: Width = 256,
        layers: Depth = 5,
        damping: Literal['sqrt', 'arctan', 'log', 'one'] = 'sqrt',
        omega: Positive = 30.0,
        features: int = CONTEXT,
        outputs: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.omega, self.damping = omega, damping
        self.inputs, self.outputs = features, outputs
        self.layers = sine_layers(features, width, layers, outputs, self.omega, 'usual', rngs)

    def activation(self, z):
        return spder_activation(self.omega * z, self.damping)
