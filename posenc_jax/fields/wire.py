"""WIRE: a network of complex Gabor wavelets."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Complex, Float, Inexact

from posenc_jax.fields.network import MAX_WIDTH, Dense, Depth, FieldNetwork, Weights, usual_bound
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.bounds import Ge, Le, NonNegative
from posenc_jax.protocol.registry import Card, register

Form = Literal['wire', 'wire2d']


def wire_activation(
    z: Inexact[Array, '...'],
    omega: float = 30.0,
    scale: float = 10.0,
    other: Inexact[Array, '...'] | None = None,
) -> Complex[Array, '...']:
    """`exp(i w z - s^2 |z|^2)`, a wave in a Gaussian, complex64.

    Args:
      z: real or complex arguments.
      omega, scale: w and s.
      other: z' of the form in two directions, `exp(i w z - s^2 (|z|^2 + |z'|^2))`.
    """
    size = z.real**2 + z.imag**2
    if other is not None:
        size = size + other.real**2 + other.imag**2
    return jnp.exp(1j * omega * z - scale**2 * size)


def wire(
    x: Float[Array, '... I'],
    layers: Sequence[Weights],
    omega: float = 30.0,
    scale: float = 10.0,
    others: Sequence[Weights] = (),
) -> Float[Array, '... O']:
    """`h = exp(i w z - s^2 |z|^2)`, `z = W h + b`, and the real part of a last layer without it.

    Args:
      x: coordinates, or features.
      layers: matrix and vector of every layer; all but those of the first are complex.
      omega, scale: w and s.
      others: matrix and vector of the second map z' of every layer but the last; none for one map.
    """
    affine = lambda h, w, b: jnp.matmul(h, w, precision=jax.lax.Precision.HIGHEST) + b
    h = x
    for number, own in enumerate(layers[:-1]):
        other = affine(h, *others[number]) if others else None
        h = wire_activation(affine(h, *own), omega, scale, other)
    return affine(h, *layers[-1]).real


class ComplexDense(nnx.Module):
    """A layer `x W + b` with complex W and b, which are held as real and imaginary parts. Both are
    real parameters for an optimiser, and a gradient needs no conjugate.

    Args:
      inputs, outputs: sizes. All parts are drawn uniformly within 1 / sqrt(inputs).
    """

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        bound = usual_bound(inputs)
        self.real, self.imaginary = (Dense(inputs, outputs, bound, bound, rngs) for _ in range(2))

    @property
    def weights(self) -> Weights:
        """W and b, complex64."""
        parts: Any = zip(self.real.weights, self.imaginary.weights)
        w, b = (jax.lax.complex(real, imaginary) for real, imaginary in parts)
        return w, b


@register(
    'wire',
    kind='field',
    card=Card(
        name='WIRE',
        example='wire(width=32, layers=2, omega=10.0, scale=5.0)',
        use_when=(
            'You fit pictures with noise or local detail; to compare with SIREN, since '
            'two measured claims are contrary.'
        ),
        needs_training=True,
    ),
)
class Wire(FieldNetwork):
    """A network whose activation is a complex wave within a Gaussian, local in space and in
    frequency, of coordinates in [-1, 1] or of other features.

    `z = W h + b`, `h = exp(i w z - |s z|^2)`, `y = Re(V h + c)`. The first layer has real weights,
    and all later ones complex weights. Real and imaginary parts are uniform within 1 / sqrt(d), d
    the inputs of a layer. A width D stands for D / sqrt(2) complex units, rounded down, which have
    about as many real parameters as D real units. The form 'wire2d' has a second map z' of the same
    inputs, `h = exp(i w z - s^2 (|z|^2 + |z'|^2))`, and D / 2 units. Differs from the paper: a
    complex parameter is held as two real ones, which the optimiser updates apart.

    From the second layer on z is complex, and `|h| = exp(-w Im z - |s z|^2)` has its peak, which is
    `exp(w^2 / (4 s^2))`, at `Im z = -w / (2 s^2)`: 9.5 for the defaults, and beyond float32 for w
    above about 19 s. Without a window it has no bound.

    Args:
      width: D.
      layers: layers with an activation, the first included.
      omega: w, the frequency; 20 for pictures in the paper, about 5 for denoising; 0 for Gaussians
        alone.
      scale: s, the inverse width of the Gaussian; 10 or 30 for pictures, about 5 for denoising; 0
        for waves alone, of one layer.
      form: 'wire' or 'wire2d'.

    Raises:
      ValueError: a scale of 0 with several layers.

    Reference: Saragadam et al., arXiv 2301.05187.

    Example:
      >>> from posenc_jax.fields import make_field
      >>> network = make_field('wire(width=16, layers=3)', features=2, outputs=1)
      >>> [layer.weights[0].shape for layer in network.layers]
      [(2, 11), (11, 11), (11, 11), (11, 1)]
    """

    def __init__(
        self,
        width: Annotated[int, Ge(2), Le(MAX_WIDTH)] = 256,
        layers: Depth = 3,
        omega: NonNegative = 30.0,
        scale: NonNegative = 10.0,
        form: Form = 'wire',
        features: int = CONTEXT,
        outputs: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if scale == 0 and layers > 1:
            raise ValueError(
                f'wire scale=0 leaves complex waves without a bound, got layers={layers}; expected '
                'a scale above 0, or layers=1'
            )
        self.inputs, self.outputs, self.omega, self.scale = features, outputs, omega, scale
        units = width // 2 if form == 'wire2d' else int(width / math.sqrt(2))
        bound = usual_bound(features)

        def hidden():
            first = Dense(features, units, bound, bound, rngs)
            return [first, *(ComplexDense(units, units, rngs) for _ in range(layers - 1))]

        self.layers = nnx.List([*hidden(), ComplexDense(units, outputs, rngs)])
        self.others = nnx.List(hidden() if form == 'wire2d' else [])

    def values(self, x, *, key=None, progress=None):
        layers, others = ([m.weights for m in own] for own in (self.layers, self.others))
        return wire(x, layers, self.omega, self.scale, others)
