"""The protocol of encoders of coordinates, and `make_features`, which builds one from a spec
string.
"""

from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from posenc_jax.language import spec as spec_language
from posenc_jax.protocol.bounds import Ge, Le
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import Card

MAX_FEATURES = 2**20
Wide = Annotated[int, Ge(1), Le(MAX_FEATURES)]


class CoordinateEncoder(nnx.Module):
    """Features of points: `encode(coords [..., d]) -> features [..., F]`, float32.

    Encoders are pure: one point's features do not depend on the other points of a batch.

    Attributes:
      card: the catalogue entry, set by `register`.
      spec_kind: lets a spec string give encoders as arguments of others.
      names: what error messages call the coordinates; by default their numbers.
      components: d, how many coordinates a point has.
      width: F, how many features it gets.
    """

    card: ClassVar[Card]
    spec_kind: ClassVar[str] = 'coordinates'
    names: ClassVar[tuple[str, ...]] = ()
    components: int
    width: int

    def encode(self, coords: Num[Array, '... d'] | list | tuple) -> Float[Array, '... F']:
        """The features of points, which are an array or nested lists."""
        raise NotImplementedError

    def encode_at(
        self,
        coords: Num[Array, '... d'] | list | tuple,
        progress: Float[Array, ''] | float | None = None,
    ) -> Float[Array, '... F']:
        """The features while a field is trained, those of `encode` unless an encoder grows.

        Args:
          coords: the points.
          progress: the share of training that is over; None is the end.
        """
        return self.encode(coords)

    def check(self, coords: Num[Array, '... d'] | list | tuple) -> Float[Array, '... d']:
        """The coordinates in float32. Values are checked where they are known, which is not so
        while JAX traces.

        Raises:
          ValueError: points with another number of coordinates than `components`; coordinates that
            are not real numbers, or not finite.
        """
        coords = coords if hasattr(coords, 'ndim') else np.asarray(coords)
        if coords.ndim < 1 or coords.shape[-1] != self.components:
            raise ValueError(
                f'{type(self).__name__} encodes points [..., {self.components}], got coordinates '
                f'of shape {coords.shape}'
            )
        if not any(jnp.issubdtype(coords.dtype, kind) for kind in (jnp.floating, jnp.integer)):
            raise ValueError(
                f'{type(self).__name__} encodes real numbers, got coordinates of dtype '
                f'{coords.dtype}'
            )
        coords = jnp.asarray(coords, jnp.float32)
        if not isinstance(coords, jax.core.Tracer) and coords.is_fully_addressable:
            self.check_values(np.asarray(coords))
        return coords

    def check_values(self, coords: Float[np.ndarray, '... d']) -> None:
        """Refuses values that no features are defined for; here, those that are not finite.

        `encode` calls it where values are known. A program that encodes inside `jax.jit` may call
        it once for its data.

        Raises:
          ValueError: there are such values.
        """
        wrong = ~np.isfinite(coords)
        if not wrong.any():
            return
        named = self.names or tuple(f'coordinate {i}' for i in range(self.components))
        which = [name for i, name in enumerate(named) if wrong[..., i].any()]
        raise ValueError(
            f'{type(self).__name__} encodes finite coordinates, got {coords[wrong][0]} as '
            f'{" and ".join(which)} of {counted(wrong.any(-1))}'
        )


def limited(what: str, width: int) -> int:
    """The width of an encoder; more than 2^20 features are a ValueError."""
    if width > MAX_FEATURES:
        raise ValueError(f'{what} {width} features; at most {MAX_FEATURES} are accepted')
    return width


def counted(wrong: Bool[np.ndarray, '...']) -> str:
    """How many points of a batch are wrong, and the index of the first one, as words."""
    first = np.unravel_index(int(wrong.argmax()), wrong.shape)
    where = f', first at {[int(i) for i in first]}' if wrong.ndim else ''
    return f'{wrong.sum()} of {wrong.size} point{"s" * (wrong.size > 1)}{where}'


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

    def check_values(self, coords):
        for part in self.parts:
            part.check_values(coords)

    def encode(self, coords):
        return self.encode_at(coords)

    def encode_at(self, coords, progress=None):
        return jnp.concatenate([part.encode_at(coords, progress) for part in self.parts], axis=-1)


def make_features(spec: str, rngs: nnx.Rngs | None = None) -> CoordinateEncoder:
    """Builds an encoder of coordinates from a spec string; `|` concatenates features.

    Args:
      spec: e.g. "shifted_basis('gaussian', features=64)".
      rngs: draws what is random; `nnx.Rngs(0)` if it is not given.

    Raises:
      SpecError: the string is wrong, or joins encoders of different points.
    """
    context = {'rngs': nnx.Rngs(0) if rngs is None else rngs}
    nodes = spec_language.parse(spec, ('coordinates',)).nodes
    parts = tuple(spec_language.build(node, context) for node in nodes)
    return parts[0] if len(parts) == 1 else JoinedFeatures(parts)
