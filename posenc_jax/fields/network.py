"""The protocol of fields, networks from points to values, the layers that they have in common, and
`make_field`, which builds one from a spec string.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.language import spec as spec_language
from posenc_jax.protocol.bounds import Ge, Le
from posenc_jax.protocol.errors import SpecError, quoted
from posenc_jax.protocol.registry import Card

MAX_WIDTH = 2**16
MAX_LAYERS = 64  # each is traced on its own
Width = Annotated[int, Ge(1), Le(MAX_WIDTH)]
Depth = Annotated[int, Ge(1), Le(MAX_LAYERS)]

Weights = tuple[Array, Array | None]  # a matrix [I, O], and a vector [O] or none
Activation = Callable[[Array], Array]


def affine(
    x: Float[Array, '... I'], weight: Float[Array, 'I O'], bias: Float[Array, ' O'] | None = None
) -> Float[Array, '... O']:
    """`x W + b` in full float32, because sines with factors of 30 follow."""
    out = jnp.matmul(x, weight, precision=jax.lax.Precision.HIGHEST)
    return out if bias is None else out + bias


def perceptron(
    x: Float[Array, '... I'], layers: Sequence[Weights], activations: Sequence[Activation]
) -> Float[Array, '... O']:
    """Layers one after the other, with an activation behind each of them but the last.

    Args:
      layers: matrix and vector of every layer.
      activations: one fewer than there are layers.
    """
    for (weight, bias), activation in zip(layers[:-1], activations, strict=True):
        x = activation(affine(x, weight, bias))
    return affine(x, *layers[-1])


class Dense(nnx.Module):
    """A layer `x W + b` with its initial scale, which `doh` gives to the weights that it makes.

    Args:
      inputs, outputs: sizes.
      bound: the weights are drawn uniformly from -bound .. bound.
      bias: so are the biases, from -bias .. bias; None for a layer without biases.
    """

    def __init__(self, inputs: int, outputs: int, bound: float, bias: float | None, rngs: nnx.Rngs):
        self.std = bound / math.sqrt(3)  # of a uniform number
        self.weight = nnx.Param(
            bound * jax.random.uniform(rngs.params(), (inputs, outputs), minval=-1.0),
            axes=(None, None),
        )
        drawn = lambda: bias * jax.random.uniform(rngs.params(), (outputs,), minval=-1.0)
        self.bias = None if bias is None else nnx.Param(drawn(), axes=(None,))

    @property
    def weights(self) -> Weights:
        """W and b."""
        return self.weight[...], None if self.bias is None else self.bias[...]

    def __call__(self, x: Float[Array, '... I']) -> Float[Array, '... O']:
        return affine(x, *self.weights)


def usual_bound(inputs: int) -> float:
    """`1 / sqrt(inputs)`, the bound of weights and biases where a paper leaves them to its
    framework.
    """
    return inputs**-0.5


class FieldNetwork(nnx.Module):
    """A network from points to values: `network(features, coords) -> values [..., out]`, float32.

    A subclass writes `values`, which reads the features of a point, or its coordinates if the
    network has none of them (`takes_features` is False). One point's values do not depend on the
    other points. A constructor takes from its context: `features` (F, how many features a point
    has), `components` (d, how many coordinates), `outputs` (how many values), and `rngs`, which
    draws the parameters.

    Attributes:
      card: the catalogue entry, set by `register`.
      spec_kind: lets a spec string give networks as arguments of others.
      takes_features: whether it reads features.
      inputs: width of what `values` reads.
      outputs: how many values a point has.
    """

    card: ClassVar[Card]
    spec_kind: ClassVar[str] = 'field'
    takes_features: bool = True
    inputs: int
    outputs: int

    def values(
        self, x: Float[Array, '... I'], *, key: Array | None = None, progress: Any = None
    ) -> Float[Array, '... out']:
        """The values of points; the arguments are those of a call."""
        raise NotImplementedError

    def __call__(
        self,
        features: Num[Array, '... F'] | None,
        coords: Num[Array, '... d'],
        *,
        key: Array | None = None,
        progress: Float[Array, ''] | float | None = None,
    ) -> Float[Array, '... out']:
        """The values of points.

        Args:
          features: of the points; None for a network that reads the coordinates themselves. A
            network that reads features takes the coordinates as such where there are no others.
          key: draws what training drops; None drops nothing.
          progress: the share of training that is over, for networks that grow; None is the end.

        Raises:
          ValueError: features that are missing or not wanted, another number of them than the
            network was made for, or a coordinate that is not finite.
        """
        name = type(self).card.key
        if self.takes_features == (features is None):
            raise ValueError(
                f'{name} reads features of the points; give them, or the coordinates as such'
                if features is None
                else f'{name} reads the coordinates themselves and takes no features; leave them '
                "out (config.features='')"
            )
        check_finite(coords)
        x = coords if features is None else features
        if x.ndim < 1 or x.shape[-1] != self.inputs:
            what = 'coordinates' if features is None else 'features'
            raise ValueError(
                f'{name} was made for {self.inputs} {what} a point, got {what} of shape {x.shape}'
            )
        return self.values(x.astype(jnp.float32), key=key, progress=progress)


class Perceptron(FieldNetwork):
    """Layers one after the other with one activation behind each of them but the last. A subclass
    makes the layers and writes `activation`.

    Attributes:
      layers: of `Dense`.
    """

    layers: nnx.List

    def activation(self, z: Float[Array, '...']) -> Float[Array, '...']:
        """What follows a layer."""
        raise NotImplementedError

    def values(self, x, *, key=None, progress=None):
        layers = [layer.weights for layer in self.layers]
        return perceptron(x, layers, [self.activation] * (len(layers) - 1))


def check_finite(coords: Num[Array, '... d'] | np.ndarray) -> None:
    """Raises ValueError if a coordinate is not finite; traced ones have no values to check."""
    if isinstance(coords, jax.core.Tracer):
        return
    wrong = np.argwhere(~np.isfinite(np.asarray(coords)))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(
            f'coordinates must be finite, got {np.asarray(coords)[place]} at {list(place)} of '
            f'points of shape {coords.shape} ({len(wrong)} such coordinates)'
        )


def make_field(
    spec: str, *, features: int, outputs: int, components: int = 0, rngs: nnx.Rngs | None = None
) -> FieldNetwork:
    """Builds a network from a spec string.

    Args:
      spec: e.g. 'siren(width=64, layers=3)'.
      components: d, how many coordinates; 0 means `features`, for points without other features.
      rngs: draws the parameters; `nnx.Rngs(0)` if it is not given.

    Raises:
      SpecError: the string is wrong, or names several networks.
    """
    nodes = spec_language.parse(spec, ('field',)).nodes
    if len(nodes) != 1:
        raise SpecError(f'field is {quoted(spec)}: networks cannot be joined by "|"')
    context = dict(
        features=features,
        components=components or features,
        outputs=outputs,
        rngs=nnx.Rngs(0) if rngs is None else rngs,
    )
    return spec_language.build(nodes[0], context)
