"""Rotary encoding of points in space: a block of features for each coordinate."""

from typing import Annotated

import jax
from jaxtyping import Array, Num

from posenc_jax.base.phases import phase
from posenc_jax.methods.rope import rope_frequencies, rotate
from posenc_jax.methods.turned import Turned
from posenc_jax.protocol.bounds import CONTEXT, Base, Ge, Le, Positive, Size
from posenc_jax.protocol.registry import Card, register


def rope_3d(
    x: Num[Array, 'B L heads H'],
    pos: Num[Array, '#B L P'],
    base: float = 10000.0,
    *,
    width: int | None = None,
    scale: float = 1.0,
    across_heads: bool = False,
) -> Num[Array, 'B L heads H']:
    """Queries or keys in which each coordinate p turns the pairs (2i, 2i + 1) of its own block of
    b = W/P features by `scale p base^(-2i/b)`. Coordinates get no gradient.

    Args:
      x: vectors.
      pos: coordinates.
      width: W, how many first features of a head turn; None is all of them.
      scale: multiplies the coordinates.
      across_heads: the blocks divide the features of all heads together, not those of each head.

    Raises:
      ValueError: a W that is no multiple of 2 P; with `across_heads`, an odd H.

    Example:
      >>> import jax.numpy as jnp
      >>> points = jnp.array([[[0.0, 0.0, jnp.pi / 2]]])
      >>> rope_3d(jnp.ones((1, 1, 1, 6)), points).round(3).ravel().tolist()
      [1.0, 1.0, 1.0, 1.0, -1.0, 1.0]
    """
    (heads, own), axes = x.shape[2:], pos.shape[2]
    turned = heads * own if across_heads else own if width is None else width
    check_rope_3d(turned, axes, own, across_heads)
    frequencies = scale * rope_frequencies(turned // axes, base)
    angles = phase(jax.lax.stop_gradient(pos), frequencies)
    # Pairs of the first head come first where the blocks go across heads.
    angles = angles.reshape(*angles.shape[:2], heads if across_heads else 1, -1)
    return rotate(x, angles, layout='interleaved')


def check_rope_3d(width: int, components: int, head_dim: int, across_heads: bool) -> None:
    """Refuses a width that has no pairs for each coordinate.

    Raises:
      ValueError: no multiple of 2 P; with `across_heads`, a pair that lies in two heads.
    """
    part = 2 * components
    if width < part or width % part:
        nearest = max(1, min(width, 2**16) // part) * part
        raise ValueError(
            f'rope_3d turns pairs for each of {components} coordinates, so it needs a multiple of '
            f'{part} features, got {width}; the nearest below is {nearest}'
            + ('' if across_heads else f', as in rope_3d(width={nearest})')
        )
    if across_heads and head_dim % 2:
        raise ValueError(
            f'rope_3d turns features in pairs, and with head_dim={head_dim} some of them would lie '
            'in two heads; use an even head_dim'
        )


@register(
    'rope_3d',
    kind='encoding',
    card=Card(name='3-D RoPE', example='rope_3d(width=6)', share='model', relative=True),
)
class Rope3d(Turned):
    """Rotates a block of queries and keys by each coordinate of a point.

    `q'_i = [R(x_i w) | R(y_i w) | R(z_i w)] q_i`, `k'_j = [R(x_j w) | R(y_j w) | R(z_j w)] k_j`,
    `w_t = scale base^(-6t/H)`. Logits depend on the differences of the coordinates alone, so moving
    a whole cloud changes nothing; turning it does. Coordinates get no gradient. A token without a
    place, such as a learned query, gets the origin as its position, where nothing turns.

    Differs from the paper: the coordinates of each head turn the whole range of frequencies; the
    released code turns the vectors before they are cut into heads, so that heads see different
    coordinates, which is `across_heads=True`. `scale` is ours: the code reads metres as they are,
    and in a scene of one metre the default base leaves most pairs nearly unrotated.

    Args:
      components: number of coordinates P; 4 adds the time as a fourth block.
      base: base of the frequencies.
      scale: multiplies the coordinates, such as 2 pi / size of a voxel.
      width: how many first features of a head are turned, a multiple of 2 P; None is all of them.
      across_heads: the blocks divide the features of all heads together.
      head_dim, heads, kv_heads: H, N and K, from the model.

    Raises:
      ValueError: a width that is no multiple of 2 P; `across_heads` with a `width`, or with fewer
        key heads than query heads; at call, positions with another number of components.

    Reference: Ke, Gkanatsios, Fragkiadaki, arXiv 2402.10885.
    """

    def __init__(
        self,
        components: Annotated[int, Ge(1), Le(1024)] = 3,
        base: Base = 10000.0,
        scale: Positive = 1.0,
        width: Annotated[int, Ge(2), Le('head_dim')] | None = None,
        across_heads: bool = False,
        head_dim: Size = CONTEXT,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        if across_heads and (width is not None or heads != kv_heads):
            raise ValueError(
                'rope_3d across_heads=True divides all features of all heads alike, so it needs '
                f'width=None and as many key heads as query heads, got width={width} and '
                f'{kv_heads} key heads for {heads} query heads'
            )
        used = head_dim * heads if across_heads else head_dim if width is None else width
        check_rope_3d(used, components, head_dim, across_heads)
        self.components, self.base, self.scale = components, base, scale
        self.width, self.across_heads, self.head_dim = width, across_heads, head_dim

    def turned(self, x, tok):
        return rope_3d(
            x,
            self.positions(tok),
            self.base,
            width=self.width,
            scale=self.scale,
            across_heads=self.across_heads,
        )
