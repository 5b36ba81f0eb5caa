"""Axial rotary encoding of a grid: half of a head turns by the row, half by the column."""

from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from posenc_jax.base.phases import phase
from posenc_jax.methods.rope import LAYOUTS, Layout, rope_frequencies, rotate
from posenc_jax.methods.turned import Turned
from posenc_jax.protocol.bounds import CONTEXT, Base, Multiple, Positive
from posenc_jax.protocol.errors import check_choice, check_number
from posenc_jax.protocol.grids import check_grid, on_grid
from posenc_jax.protocol.registry import Card, register


def axial_rope2d(
    x: Num[Array, 'B L heads H'],
    pos: Num[Array, '#B L 2'],
    base: float = 10000.0,
    *,
    layout: Layout = 'half',
    scale: float | tuple[float, float] = 1.0,
) -> Num[Array, 'B L heads H']:
    """Queries or keys whose first half is rotated by the row and whose second half by the column.

    Plane k of an axis turns by `scale p base^(-4k/H)`. Tokens that are not on the grid are left as
    they are. Phases are exact to float32 at any position.

    Args:
      x: vectors; H is a multiple of 4.
      pos: (row, column).
      base: of the frequencies.
      layout: planes of an axis, which has H/2 features: (k, k + H/4) for 'half', (2k, 2k + 1) for
        'interleaved'.
      scale: multiplies rows and columns, or one number for each.

    Raises:
      ValueError: a width that is no multiple of 4, positions that are not [B, L, 2], a base below
        1, a scale that is not positive, an unknown layout.
    """
    check_choice('layout', layout, LAYOUTS)
    check_grid('axial_rope2d', pos)
    width = x.shape[-1]
    if width < 4 or width % 4:
        raise ValueError(
            f'axial_rope2d turns pairs in both halves of a head, so head_dim must be a positive '
            f'multiple of 4, got {width}; the nearest is {max(4, round(width / 4) * 4)}'
        )
    scales = np.broadcast_to(np.asarray(scale, np.float64), 2)
    for one in scales.tolist():
        check_number('axial_rope2d scale', one, above=0)
    # The frequencies are scaled, not the positions, which stay whole numbers.
    angles = phase(pos, scales[:, None] * rope_frequencies(width // 2, base))
    angles = jnp.where(on_grid(pos)[..., None, None], angles, 0.0)
    halves = x.reshape(*x.shape[:-1], 2, width // 2)
    return rotate(halves, angles[:, :, None], layout=layout).reshape(x.shape)


@register(
    'axial_rope2d',
    kind='encoding',
    card=Card(
        name='2-D axial RoPE',
        example='axial_rope2d()',
        use_when=(
            'You train a model on images or another grid and want rotary positions '
            'without parameters.'
        ),
        share='model',
        relative=True,
    ),
)
class AxialRope2d(Turned):
    """Rotates the first half of queries and keys by the row, and the second half by the column.

    `q'_i = [R(r_i f) | R(c_i f)] q_i`, `k'_j = [R(r_j f) | R(c_j f)] k_j`, `f_k = scale
    base^(-4k/H)`. Logits depend on the differences of rows and columns alone. Positions are (row,
    column). A token that is not on the grid, such as a class token at (-1, -1), has no position and
    is not rotated, so its logits depend on the place of the other token. Differs from the paper:
    the default layout is 'half'; both layouts give the same logits after a permutation of the
    features.

    Args:
      base: base of the frequencies.
      layout: 'half' or 'interleaved', within the half of an axis; see `axial_rope2d`.
      scale: multiplies rows and columns, or (of rows, of columns); trained size / size interpolates
        positions.
      head_dim: H, from the model.

    Raises:
      ValueError: at call, positions that are not [B, L, 2].

    Reference: Fang et al., arXiv 2303.11331.

    Example:
      >>> import posenc_jax as pj
      >>> part, grid = pj.make('axial_rope2d()', head_dim=4), pj.Tokens.of(positions=[[[0, 1]]])
      >>> q = jnp.ones((1, 1, 1, 4))
      >>> part.project(q, q, q, grid, grid)[0].round(2).ravel().tolist()
      [1.0, 1.0, -0.3, 1.38]
    """

    components = 2

    def __init__(
        self,
        base: Base = 10000.0,
        layout: Layout = 'half',
        scale: Positive | tuple[Positive, Positive] = 1.0,
        head_dim: Annotated[int, Multiple(4)] = CONTEXT,
    ):
        self.base, self.scale, self.head_dim = base, scale, head_dim
        self.layout: Layout = layout

    def turned(self, x, tok):
        return axial_rope2d(x, tok.pos, self.base, layout=self.layout, scale=self.scale)
