"""SIREN: a network of sines of coordinates."""

import math
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.fields.network import (
    Dense,
    Depth,
    FieldNetwork,
    Weights,
    Width,
    perceptron,
    usual_bound,
)
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.bounds import Positive
from posenc_jax.protocol.registry import Card, register

PRESETS = {'siren': 30.0, 'geo': 1.0}  # omega of all layers but the first


def siren(
    x: Float[Array, '... I'], layers: Sequence[Weights], first: float = 30.0, hidden: float = 30.0
) -> Float[Array, '... O']:
    """`h1 = sin(first (W1 x + b1))`, `h = sin(hidden (W h + b))`, and a last layer without sine."""
    omegas = [first] + [hidden] * (len(layers) - 2)
    return perceptron(x, layers, [lambda z, o=o: jnp.sin(o * z) for o in omegas])


def sine_layers(
    inputs: int,
    width: int,
    layers: int,
    outputs: int,
    hidden: float,
    bias: Literal['usual', 'weights'],
    rngs: nnx.Rngs,
) -> nnx.List:
    """Layers with the initial weights of SIREN: uniform within 1 / d in the first layer and within
    `sqrt(6 / d) / hidden` in the others, d the inputs of a layer.

    Args:
      inputs, width, layers, outputs: sizes; `layers` counts those with an activation.
      hidden: omega of the layers behind the first.
      bias: 'usual' draws biases within 1 / sqrt(d), 'weights' within the bound of the weights.
    """
    sizes = [inputs, *[width] * layers, outputs]
    bounds = [1 / inputs] + [math.sqrt(6 / width) / hidden] * layers
    return nnx.List(
        Dense(d, o, bound, usual_bound(d) if bias == 'usual' else bound, rngs)
        for d, o, bound in zip(sizes[:-1], sizes[1:], bounds, strict=True)
    )


@register(
    'siren',
    kind='field',
    card=Card(name='SIREN', example='siren(width=32, layers=2)', needs_training=True),
)
class Siren(FieldNetwork):
    """A network whose activation is the sine, of coordinates in [-1, 1] or of other features.

    `h1 = sin(30 (W1 x + b1))`, `h = sin(30 (W h + b))`, `y = V h + c`. W1 is drawn uniformly
    within 1 / d and all other weights within `sqrt(6 / d) / 30`, d the inputs of a layer, so that
    the sines of every layer are spread alike; biases within 1 / sqrt(d). Outside [-1, 1] nothing
    is learned. Differs from the paper: nothing. The preset 'geo' is the SirenNet of location
    encoders (arXiv 2310.06743): hidden layers `sin(W h + b)`, and biases within the bound of the
    weights.

    Args:
      width: units of a hidden layer.
      layers: layers with a sine, the first included.
      preset: 'siren' or 'geo'.
      first: factor of the argument in the first layer.

    Reference: Sitzmann et al., arXiv 2006.09661.

    Example:
      >>> from posenc_jax.fields import make_field
      >>> network = make_field('siren(width=16, layers=3)', features=2, outputs=1)
      >>> points = jnp.zeros((4, 4, 2))
      >>> network(points, points).shape
      (4, 4, 1)
    """

    def __init__(
        self,
        width: Width = 256,
        layers: Depth = 3,
        preset: Literal['siren', 'geo'] = 'siren',
        first: Positive = 30.0,
        features: int = CONTEXT,
        outputs: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.first, self.hidden = first, PRESETS[preset]
        self.inputs, self.outputs = features, outputs
        bias = 'usual' if preset == 'siren' else 'weights'
        self.layers = sine_layers(features, width, layers, outputs, self.hidden, bias, rngs)

    def values(self, x, *, key=None, progress=None):
        return siren(x, [layer.weights for layer in self.layers], self.first, self.hidden)
