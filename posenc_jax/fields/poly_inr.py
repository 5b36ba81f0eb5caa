"""Poly-INR: a polynomial of the coordinates, one degree higher with every level."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.fields.network import (
    Dense,
    Depth,
    FieldNetwork,
    Weights,
    Width,
    affine,
    usual_bound,
)
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.bounds import Share
from posenc_jax.protocol.registry import Card, register

LIMIT = 256.0  # the features of a level are cut at +- this


def poly_level(
    x: Float[Array, '... C'] | None,
    grid: Float[Array, '... d'],
    turn: Weights,
    map_: Weights,
    layer: Weights,
    slope: float = 0.2,
) -> tuple[Float[Array, '... C'], Float[Array, '... d']]:
    """One level: the points are mapped once more, and the features are multiplied by a map of them.

    `g = g A + a`, `u = g M + m`, `x = clamp(lrelu(W (x lrelu(u)) + b))`; at the first level, where
    there is no x, `x = clamp(lrelu(W u + b))`.

    Args:
      x: the features of the level before, or None.
      grid: its points g.
      turn: A [d, d] and a [d].
      map_: M [d, C] and m [C].
      layer: W [C, C] and b [C].
      slope: of the leaky unit on the negative side; with 1 the result is a polynomial.

    Returns:
      The features and the points.
    """
    leaky = lambda a: jnp.where(a >= 0, a, slope * a)
    grid = affine(grid, *turn)
    u = affine(grid, *map_)
    x = affine(u if x is None else x * leaky(u), *layer)
    return jnp.clip(leaky(x), -LIMIT, LIMIT), grid


@register(
    'poly_inr',
    kind='field',
    card=Card(
        name='Poly-INR',
        example='poly_inr(width=16, levels=3, style=8)',
        use_when=(
            'You want a field that is a polynomial of the coordinates; to compare with a '
            'plain network, since a measured claim is contrary.'
        ),
        needs_training=True,
    ),
)
class PolyInr(FieldNetwork):
    """Features that are multiplied by an affine map of the coordinates at every level, without any
    encoding of the coordinates.

    `g = g A_l + a_l`, `x = clamp(lrelu(W_l (x lrelu(g M_l + m_l)) + b_l))` at level l, where g
    begins as the coordinates, moved from [-1, 1] to [0, 1], and x is clamped at +-256. At level 0,
    `x = clamp(lrelu(W_0 (g M_0 + m_0) + b_0))`. A linear head follows. A_l, a_l, M_l and m_l are
    affine functions of a style w_l, from level 1 on of `s = lrelu(W_f w_l / sqrt(Z) + b_f)
    sqrt(2)`.

    Differs from the paper: as in its code, the map of the coordinates has a leaky unit too and the
    grid is transformed cumulatively. The styles are free parameters, for a single signal, where the
    paper has a mapping network; the initial weights are this package's, with A_l near the identity.

    Args:
      width: C, features of a level.
      levels: how many.
      style: Z, width of a style.
      slope: of the leaky units; 1 makes the features a polynomial of degree `levels`.

    Reference: Singh, Shukla, Turaga, arXiv 2303.11424.

    Example:
      >>> from posenc_jax.fields import make_field
      >>> network = make_field('poly_inr(width=8, levels=3, style=4)', features=2, outputs=3)
      >>> network(None, jnp.zeros((5, 2))).shape
      (5, 3)
    """

    takes_features = False

    def __init__(
        self,
        width: Width = 1024,
        levels: Depth = 10,
        style: Width = 512,
        slope: Share = 0.2,
        components: int = CONTEXT,
        outputs: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.inputs, self.outputs, self.slope = components, outputs, slope
        drawn = jax.random.normal(rngs.params(), (levels, style))
        self.styles = nnx.Param(drawn, axes=(None, None))
        bound = lambda size: math.sqrt(6 / size)
        shallow = lambda size, outs, part: Dense(size, outs, part * bound(size), 0.0, rngs)
        turned, mapped = components * (components + 1), (components + 1) * width
        sizes = [style] + [width] * (levels - 1)
        self.mix = nnx.List(
            Dense(style, width, math.sqrt(3), 0.0, rngs)  # of variance 1
            for _ in range(levels - 1)
        )
        self.turns = nnx.List(shallow(size, turned, 0.05) for size in sizes)
        self.maps = nnx.List(shallow(size, mapped, 0.5) for size in sizes)
        self.layers = nnx.List(
            Dense(width, width, bound(width), usual_bound(width), rngs) for _ in range(levels)
        )
        self.head = Dense(width, outputs, usual_bound(width), 0.0, rngs)

    def features(self, coords: Float[Array, '... d']) -> Float[Array, '... C']:
        """The features x of the last level."""
        d, x, grid = self.inputs, None, (coords + 1) / 2
        for level, layer in enumerate(self.layers):
            style = self.styles[level]
            if level:
                mixed = affine(style / math.sqrt(style.shape[0]), *self.mix[level - 1].weights)
                style = jnp.where(mixed >= 0, mixed, self.slope * mixed) * math.sqrt(2)
            turn, map_ = (part[level](style).reshape(d + 1, -1) for part in (self.turns, self.maps))
            turns = turn[:d] + jnp.eye(d), turn[d]
            x, grid = poly_level(x, grid, turns, (map_[:d], map_[d]), layer.weights, self.slope)
        return x

    def values(self, x, *, key=None, progress=None):
        return self.head(self.features(x))
