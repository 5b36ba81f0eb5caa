"""The protocol of encoders of coordinates, and `make_features`, which builds one from a spec
string.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.core import spec as spec_language
from posenc_jax.core.registry import Card, SpecError

MAX_FEATURES = 2**20


class CoordinateEncoder(nnx.Module):
    """Features of points: `encode(coords [..., d]) -> features [..., F]`, float32.

    Encoders are pure: one point's features do not depend on the other points of a batch.

    Attributes:
      card: the catalogue entry, set by `register`.
      spec_kind: lets a spec string give encoders as arguments of others.
      components: d, how many coordinates a point has.
      width: F, how many features it gets.
    """

    card: ClassVar[Card]
    spec_kind: ClassVar[str] = 'coordinates'
    components: int
    width: int

    def encode(self, coords: Num[Array, '... d']) -> Float[Array, '... F']:
        """The features of points."""
        raise NotImplementedError

    def check(self, coords: Num[Array, '... d']) -> Float[Array, '... d']:
        """The coordinates in float32.

        Raises:
          ValueError: points with another number of coordinates than `components`.
        """
        if coords.ndim < 1 or coords.shape[-1] != self.components:
            raise ValueError(
                f'{type(self).__name__} encodes points [..., {self.components}], got coordinates '
                f'of shape {coords.shape}'
            )
        return coords.astype(jnp.float32)


class JoinedFeatures(CoordinateEncoder):
    """Several encoders of the same points, whose features are concatenated.

    Raises:
      SpecError: encoders of points with different numbers of coordinates.
    """

    def __init__(self, parts: tuple[CoordinateEncoder, ...]):
        found = [part.components for part in parts]
        if len(set(found)) != 1:
            raise SpecError(
                f'features are joined for points with one number of coordinates, got {found}'
            )
        self.parts = nnx.List(parts)
        self.components, self.width = found[0], sum(part.width for part in parts)

    def encode(self, coords):
        return jnp.concatenate([part.encode(coords) for part in self.parts], axis=-1)


def make_features(spec: str, rngs: nnx.Rngs | None = None) -> CoordinateEncoder:
    """Builds an encoder of coordinates from a spec string; `|` concatenates features.

    Args:
      spec: e.g. "shifted_basis('gaussian', features=64)".
      rngs: draws what is random; `nnx.Rngs(0)` if it is not given.

    Raises:
      SpecError: the string is wrong, or joins encoders of different points.

    Example:
      >>> encoder = make_features("shifted_basis('triangle', features=4)")
      >>> encoder.encode(jnp.array([[0.25], [0.5]])).tolist()
      [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    """
    context = {'rngs': nnx.Rngs(0) if rngs is None else rngs}
    nodes = spec_language.parse(spec, ('coordinates',)).nodes
    parts = tuple(spec_language.build(node, context) for node in nodes)
    return parts[0] if len(parts) == 1 else JoinedFeatures(parts)
