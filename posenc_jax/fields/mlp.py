"""A plain network of rectified linear units, the baseline of fields."""

import math

import jax
from flax import nnx

from posenc_jax.fields.network import Dense, Depth, Perceptron, Width, usual_bound
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.registry import Card, register


@register(
    'mlp',
    kind='field',
    card=Card(
        name='MLP',
        example='mlp(width=32, layers=2)',
        use_when=(
            'You have features such as Fourier features or a grid, and want the usual '
            'network on them.'
        ),
        needs_training=True,
    ),
)
class Mlp(Perceptron):
    """Rectified linear units and a linear head, of features or of the coordinates themselves.

    `h = relu(W h + b)`, `y = V h + c`. On raw coordinates it learns low frequencies alone; the
    paper reads Fourier features with it. Weights are uniform with variance 2 / d (He), biases
    within 1 / sqrt(d), d the inputs of a layer. Differs from the paper: no sigmoid behind the head.

    Args:
      width: units of a hidden layer.
      layers: layers with an activation.

    Reference: Tancik et al., arXiv 2006.10739.

    Example:
      >>> import jax.numpy as jnp
      >>> from posenc_jax.fields import make_field
      >>> network = make_field('mlp(width=16, layers=3)', features=10, components=2, outputs=1)
      >>> network(jnp.zeros((4, 10)), jnp.zeros((4, 2))).shape
      (4, 1)
    """

    def __init__(
        self,
        width: Width = 256,
        layers: Depth = 4,
        features: int = CONTEXT,
        outputs: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.inputs, self.outputs = features, outputs
        sizes = [features, *[width] * layers, outputs]
        self.layers = nnx.List(
            Dense(d, o, math.sqrt(6 / d), usual_bound(d), rngs) for d, o in zip(sizes, sizes[1:])
        )

    def activation(self, z):
        return jax.nn.relu(z)
