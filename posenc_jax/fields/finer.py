"""FINER: a sine whose frequency grows with its argument."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.fields.network import Depth, Perceptron, Width
from posenc_jax.fields.siren import sine_layers
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.bounds import Positive
from posenc_jax.protocol.registry import Card, register


def finer_activation(
    z: Float[Array, '...'], omega: float = 30.0, through: bool = False
) -> Float[Array, '...']:
    """`sin(w (|z| + 1) z)`, w = `omega`. The factor |z| + 1 carries no gradient, so the derivative
    is `w (|z| + 1) cos(w (|z| + 1) z)`, unless `through` asks for it.
    """
    factor = jnp.abs(z) + 1
    factor = factor if through else jax.lax.stop_gradient(factor)
    return jnp.sin(omega * factor * z)


@register(
    'finer',
    kind='field',
    card=Card(name='FINER', example='finer(width=32, layers=2)', needs_training=True),
)
class Finer(Perceptron):
    """A network of sines whose frequency grows with the distance of their arguments from 0, so that
    the biases of the first layer choose from a range of frequencies.

    `z = W h + b`, `h = sin(30 (|z| + 1) z)`, `y = V h + c`. The weights are those of SIREN. The
    biases of the first layer are uniform within k, which is `first_bias`. The larger k is, the
    higher are the frequencies that a network learns; a narrow one may fail with k above 1. Without
    it they are uniform within 1 / sqrt(d) as all others, d the inputs of a layer. Differs from the
    paper: as in its code, the factor |z| + 1 carries no gradient.

    Args:
      width: units of a hidden layer.
      layers: layers with a sine, the first included.
      omega: the factor 30.
      first_bias: k; None for the usual biases.
      scale_gradient: whether the factor |z| + 1 carries a gradient.

    Reference: Liu et al., arXiv 2312.02434.

    Example:
      >>> from posenc_jax.fields import make_field
      >>> network = make_field('finer(omega=1.0)', features=2, outputs=1)
      >>> network.activation(jnp.array([0.0, 0.25, 1.0])).round(2).tolist()
      [0.0, 0.31, 0.91]
    """

    def __init__(
        self,
        width: Width = 256,
        layers: Depth = 3,
        omega: Positive = 30.0,
        first_bias: Positive | None = None,
        scale_gradient: bool = False,
        features: int = CONTEXT,
        outputs: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.inputs, self.outputs = features, outputs
        self.omega, self.through = omega, scale_gradient
        self.layers = sine_layers(features, width, layers, outputs, omega, 'usual', rngs)
        if first_bias is not None:
            bias = first_bias * jax.random.uniform(rngs.params(), (width,), minval=-1.0)
            self.layers[0].bias = nnx.Param(bias, axes=(None,))

    def activation(self, z):
        return finer_activation(z, self.omega, self.through)
