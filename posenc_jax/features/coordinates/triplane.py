"""Planes of trained features, one for every two coordinates, of EG3D and K-Planes."""

import functools
import itertools
import operator
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.features.coordinates.box import (
    Box,
    BoxEncoder,
    blended,
    check_tables,
    checked_box,
    corner_weights,
    spread,
)
from posenc_jax.features.coordinates.encoder import Wide, limited
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.bounds import Ge, Le
from posenc_jax.protocol.registry import Card, register

MAX_AXES = 8  # 28 planes
Side = Annotated[int, Ge(2), Le(2**16)]
Combine = Literal['sum', 'product']


def triplane_features(
    x: Float[Array, '... d'], planes: Float[Array, 'P n n F'], combine: Combine = 'sum'
) -> Float[Array, '... F']:
    """The sum, or the product, of what x reads from every plane.

    Args:
      x: points in [0, 1]; the n x n vertices of a plane lie at multiples of 1 / (n - 1).
      planes: for the pairs (0, 1), (0, 2), .., (1, 2), .. of coordinates.
      combine: 'sum' or 'product'.
    """
    steps = planes.shape[1] - 1
    place = x * steps
    low = jnp.clip(jnp.floor(place), 0, steps - 1)  # the last vertex belongs to the last cell
    share, sides = place - low, low.astype(jnp.int32)[..., None] + jnp.arange(2)
    reads = []
    for plane, pair in zip(planes, itertools.combinations(range(x.shape[-1]), 2), strict=True):
        rows, columns = spread([sides[..., axis, :] for axis in pair])
        weights = corner_weights(jnp.stack([share[..., axis] for axis in pair], axis=-1))
        reads.append(blended(plane[rows, columns], weights, 2))
    return functools.reduce(operator.add if combine == 'sum' else operator.mul, reads)


@register(
    'triplane',
    kind='coordinates',
    card=Card(
        name='Planes of features',
        example="triplane(sizes=(4, 7), features=3, combine='product', box=(-1.0, 1.0))",
        needs_training=True,
    ),
)
class Triplane(BoxEncoder):
    """Trained features on a plane for every two coordinates of a point, three planes in space. A
    grid of planes has 3 n^2 vectors where one of space has n^3.

    `z = sum_(a<b) P_ab(x_a, x_b)`, or the product in the place of the sum; P_ab is read linearly
    between the vertices of a plane. Several sizes are joined. A sum can say sums of functions of
    two coordinates alone, a product also others. With `time` the last coordinate is a time, and its
    planes are 1 at first, so that a product of planes begins without a change over time.

    Differs from the papers: the vertices of a plane lie at the ends of the box, as in K-Planes,
    also for the sum; the planes of EG3D come from a generator, and here they are trained; the
    planes of a sum are drawn from N(0, 0.1^2), those of a product from U(0.1, 0.5) as in K-Planes;
    all axes have one size.

    Args:
      components: d, coordinates of a point, which have d (d - 1) / 2 planes.
      sizes: n of every resolution.
      features: F, of a resolution.
      combine: 'sum', EG3D, or 'product', K-Planes.
      time: whether the last coordinate is a time.
      box: the smallest and the largest value of each coordinate.

    Raises:
      ValueError: a time in a sum; no size; planes of more than 1 GiB; an empty box; at call, points
        outside the box.

    Reference: Chan et al., arXiv 2112.07945; Fridovich-Keil et al., arXiv 2301.10241.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> make_features('triplane(sizes=(8, 16), features=4)').encode(jnp.zeros((5, 3))).shape
      (5, 8)
    """

    def __init__(
        self,
        components: Annotated[int, Ge(2), Le(MAX_AXES)] = 3,
        sizes: tuple[Side, ...] = (64,),
        features: Wide = 32,
        combine: Combine = 'sum',
        time: bool = False,
        box: Box = (0.0, 1.0),
        rngs: nnx.Rngs = CONTEXT,
    ):
        if not sizes or len(sizes) > 64:
            raise ValueError(f'triplane has 1 to 64 sizes, got {len(sizes)}')
        if time and combine == 'sum':
            raise ValueError(
                "triplane time=True needs combine='product': planes of ones leave a product as it "
                'is, and not a sum'
            )
        pairs = list(itertools.combinations(range(components), 2))
        self.components, self.width = components, limited('triplane:', len(sizes) * features)
        self.box: Box = checked_box('triplane', box)
        self.combine: Combine = combine
        check_tables('triplane', features * len(pairs) * sum(size**2 for size in sizes))
        still = jnp.array([time and components - 1 in pair for pair in pairs])

        def drawn(size):
            shape = (len(pairs), size, size, features)
            if combine == 'sum':
                return 0.1 * jax.random.normal(rngs.params(), shape)
            uniform = jax.random.uniform(rngs.params(), shape, minval=0.1, maxval=0.5)
            return jnp.where(still[:, None, None, None], 1.0, uniform)

        self.planes = nnx.List(nnx.Param(drawn(n), axes=(None,) * 4, decays=False) for n in sizes)

    def encode(self, coords):
        x, inside = self.places(coords)
        found = [triplane_features(x, planes[...], self.combine) for planes in self.planes]
        return jnp.where(inside, jnp.concatenate(found, axis=-1), jnp.nan)
