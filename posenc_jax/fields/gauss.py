"""A network of Gaussian activations."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.fields.network import Dense, Depth, Perceptron, Width, usual_bound
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.bounds import Positive
from posenc_jax.protocol.registry import Card, register


def gauss_activation(z: Float[Array, '...'], scale: float = 30.0) -> Float[Array, '...']:
    """`exp(-(s z)^2)`, s = `scale`; a Gaussian of deviation `1 / (sqrt(2) s)`."""
    return jnp.exp(-jnp.square(scale * z))


@register(
    'gauss',
    kind='field',
    card=Card(
        name='Gaussian activations',
        example='gauss(width=32, layers=2, scale=3.0)',
        use_when='You fit a field from plain coordinates and want a smooth network.',
        needs_training=True,
    ),
)
class Gauss(Perceptron):
    """A network whose activation is a Gaussian, of coordinates in [-1, 1] or of other features.

    `h = exp(-(s (W h + b))^2)`, `y = V h + c`. Weights and biases are uniform within 1 / sqrt(d), d
    the inputs of a layer. Differs from the paper: it writes `exp(-z^2 / (2 sigma^2))`, so
    `s = 1 / (sqrt(2) sigma)`; the default s is that of the released code of FINER, and that of WIRE
    has 10.

    Args:
      width: units of a hidden layer.
      layers: layers with an activation, the first included.
      scale: s.

    Reference: Ramasinghe, Lucey, arXiv 2111.15135.

    Example:
      >>> from posenc_jax.fields import make_field
      >>> network = make_field('gauss(scale=2.0)', features=2, outputs=1)
      >>> network.activation(jnp.array([0.0, 0.25, 1.0])).round(2).tolist()
      [1.0, 0.78, 0.02]
    """

    def __init__(
        self,
        width: Width = 256,
        layers: Depth = 3,
        scale: Positive = 30.0,
        features: int = CONTEXT,
        outputs: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.inputs, self.outputs, self.scale = features, outputs, scale
        sizes = [features, *[width] * layers, outputs]
        self.layers = nnx.List(
            Dense(d, o, usual_bound(d), usual_bound(d), rngs) for d, o in zip(sizes, sizes[1:])
        )

    def activation(self, z):
        return gauss_activation(z, self.scale)
