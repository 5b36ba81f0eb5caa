"""RoPE for vision transformers: fixed frequencies for each axis, or trained ones for both."""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.methods.axial_rope2d import axial_rope2d
from posenc_jax.methods.rope import rope_frequencies, rotate
from posenc_jax.methods.turned import Turned, for_heads
from posenc_jax.protocol.bounds import CONTEXT, Base, Multiple
from posenc_jax.protocol.grids import check_grid, on_grid
from posenc_jax.protocol.registry import Card, register


def rope_axial(
    x: Num[Array, 'B L heads H'], pos: Num[Array, '#B L 2'], theta: float = 100.0
) -> Num[Array, 'B L heads H']:
    """Queries or keys whose first half is rotated by the column and whose second half by the row:
    `axial_rope2d` with the columns first and the layout 'interleaved'.
    """
    check_grid('rope_axial', pos)
    return axial_rope2d(x, pos[..., ::-1], theta, layout='interleaved')


def rope_mixed(
    x: Num[Array, 'B L heads H'], pos: Num[Array, '#B L 2'], frequencies: Float[Array, '2 K F']
) -> Num[Array, 'B L heads H']:
    """Queries or keys whose pair (2k, 2k + 1) turns by `fx_k c + fy_k r`, in float32.

    Tokens that are not on the grid are left as they are. Phases are exact to float32 at any
    position, and frequencies get gradients.

    Args:
      x: vectors; the number of heads is a multiple of K.
      pos: (row r, column c).
      frequencies: fx and fy of each key head, for F = H/2 pairs.

    Raises:
      ValueError: positions that are not [B, L, 2].
    """
    check_grid('rope_mixed', pos)
    columns_first = pos[:, :, None, ::-1]
    angles = phase(columns_first, jnp.moveaxis(frequencies, 0, 1)).sum(-2)
    angles = jnp.where(on_grid(pos)[..., None, None], angles, 0.0)
    return rotate(x, for_heads(angles, x.shape[2]), layout='interleaved')


def rope_mixed_start(
    phi: Float[Array, 'K'], head_dim: int, theta: float = 10.0
) -> Float[Array, '2 K F']:
    """The first frequencies: those of an axial encoding that is turned by phi.

    `fx = [m cos phi | m cos(phi + pi/2)]`, `fy = [m sin phi | m sin(phi + pi/2)]`, `m_k =
    theta^(-4k/H)`.
    """
    m = jnp.asarray(rope_frequencies(head_dim // 2, theta), jnp.float32)
    both = jnp.stack([phi, phi + jnp.pi / 2])[..., None]
    waves = jnp.stack([m * jnp.cos(both), m * jnp.sin(both)])
    return jnp.moveaxis(waves, 1, 2).reshape(2, len(phi), -1)


@register(
    'rope_axial',
    kind='encoding',
    card=Card(name='RoPE-Axial', example='rope_axial()', share='model', relative=True),
)
class RopeAxial(Turned):
    """Rotates the first half of queries and keys by the column, and the second half by the row.

    `q'_i = [R(c_i f) | R(r_i f)] q_i`, `k'_j = [R(c_j f) | R(r_j f)] k_j`, `f_k = theta^(-4k/H)`.
    It is `axial_rope2d(theta, layout='interleaved')` with rows and columns exchanged. Positions are
    (row, column). A token that is not on the grid, such as a class token at (-1, -1), is not
    rotated. Grids of other sizes have other indices; nothing is rescaled. Differs from the paper:
    nothing.

    Args:
      theta: base of the frequencies.
      head_dim: H, from the model.

    Raises:
      ValueError: at call, positions that are not [B, L, 2].

    Reference: Heo et al., arXiv 2403.13298.

    Example:
      >>> import posenc_jax as pj
      >>> part, grid = pj.make('rope_axial()', head_dim=4), pj.Tokens.of(positions=[[[0, 1]]])
      >>> q = jnp.ones((1, 1, 1, 4))
      >>> part.project(q, q, q, grid, grid)[0].round(2).ravel().tolist()
      [-0.3, 1.38, 1.0, 1.0]
    """

    components = 2

    def __init__(self, theta: Base = 100.0, head_dim: Annotated[int, Multiple(4)] = CONTEXT):
        self.theta, self.head_dim = theta, head_dim

    def turned(self, x, tok):
        return rope_axial(x, tok.pos, self.theta)


@register(
    'rope_mixed',
    kind='encoding',
    card=Card(name='RoPE-Mixed', example='rope_mixed()', relative=True, needs_training=True),
)
class RopeMixed(Turned):
    """Rotates each pair of queries and keys by a trained mixture of the column and the row.

    `q'_i = R(fx c_i + fy r_i) q_i`, `k'_j = R(fx c_j + fy r_j) k_j`. fx and fy are trained for each
    layer and head. Logits depend on the differences of rows and columns alone, whatever the
    frequencies are, and diagonals can have frequencies of their own. At first each head is
    `rope_axial` with the base `theta`, turned by a random angle, see `rope_mixed_start`. Positions
    are (row, column). A token that is not on the grid, such as a class token at (-1, -1), is not
    rotated. Frequencies are float32, also in a model of bfloat16, and weight decay leaves them
    alone. Differs from the paper: key heads that several query heads share have one set of
    frequencies; the paper has no such heads.

    Args:
      theta: base of the first frequencies.
      head_dim, kv_heads: H and K, from the model.
      rngs: draws an angle for each head.

    Raises:
      ValueError: at call, positions that are not [B, L, 2].

    Reference: Heo et al., arXiv 2403.13298.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('rope_mixed()', head_dim=4, kv_heads=1, rngs=nnx.Rngs(0))
      >>> part.frequencies.shape, (part.frequencies[...] ** 2).sum(0).round(3).tolist()
      ((2, 1, 2), [[1.0, 1.0]])
    """

    components = 2

    def __init__(
        self,
        theta: Base = 10.0,
        head_dim: Annotated[int, Multiple(4)] = CONTEXT,
        kv_heads: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.head_dim = head_dim
        phi = jax.random.uniform(rngs.params(), (kv_heads,), jnp.float32, 0.0, 2 * jnp.pi)
        first = rope_mixed_start(phi, head_dim, theta)
        self.frequencies = nnx.Param(first, axes=(None, 'kv_heads', None))

    def turned(self, x, tok):
        return rope_mixed(x, tok.pos, self.frequencies[...])
