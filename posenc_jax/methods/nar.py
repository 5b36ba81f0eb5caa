"""The near-to-far mask of a grid: a token sees all tokens that are not farther from the corner."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Num

from posenc_jax.protocol.checks import is_size
from posenc_jax.protocol.families import Mask
from posenc_jax.protocol.grids import on_grid
from posenc_jax.protocol.masks import causal_mask
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens


def near_to_far_order(size: tuple[int, ...]) -> Int[np.ndarray, 'n']:
    """The cells of a grid from near to far: their places row by row, in the order of the distance
    `m = r + c` from the corner, and within one diagonal from the first row to the last.

    `np.argsort` of it is the inverse: where the cells of the rows stand in this order.

    Args:
      size: (rows, columns), or more numbers, such as (frames, rows, columns).

    Raises:
      ValueError: no numbers, or one that is not an integer of at least 1.
    """
    if not size or not all(map(is_size, size)):
        raise ValueError(f'a grid has integers of at least 1 as its size, got {size}')
    return np.argsort(np.indices(size).sum(0).reshape(-1), kind='stable')


def near_to_far_positions(size: tuple[int, ...], conditions: int = 0) -> Int[np.ndarray, 'L P']:
    """The positions of condition tokens, -1 in all components, and of a grid from near to far.

    Args:
      size: as for `near_to_far_order`.
      conditions: how many tokens stand in front.

    Raises:
      ValueError: as `near_to_far_order`.
    """
    cells = np.indices(size).reshape(len(size), -1).T[near_to_far_order(size)]
    front = np.full((conditions, len(size)), -1)
    return np.concatenate([front, cells]).astype(np.int32)


def nar_mask(
    q_pos: Num[Array, '#B T P'],
    k_pos: Num[Array, '#B S P'],
    q_index: Int[Array, '#B T'],
    k_index: Int[Array, '#B S'],
) -> Bool[Array, '#B 1 T S']:
    """`m_j <= m_i`, `m = r + c`: the cells that are not farther from the corner than the query.

    A token that is not on the grid is a condition: all cells see it, and it sees the conditions
    that are not later.

    Args:
      q_pos, k_pos: cells, -1 in all components for conditions; see `near_to_far_positions`.
      q_index, k_index: places of the tokens in their row.

    Reference: He et al., arXiv 2503.10696.

    Example:
      >>> cells = jnp.asarray(near_to_far_positions((2, 2), conditions=1))[None]
      >>> index = jnp.arange(5)[None]
      >>> nar_mask(cells, cells, index, index)[0, 0].sum(-1).tolist()
      [1, 2, 4, 4, 5]
    """
    q_grid, k_grid = on_grid(q_pos)[:, None, :, None], on_grid(k_pos)[:, None, None, :]
    near = k_pos.sum(-1)[:, None, None, :] <= q_pos.sum(-1)[:, None, :, None]
    return jnp.where(k_grid, q_grid & near, q_grid | causal_mask(q_index, k_index))


@register(
    'nar',
    kind='encoding',
    card=Card(
        name='near-to-far mask',
        example='nar()',
        use_when=(
            'You generate images or fields from one corner, and want to draw a diagonal at once.'
        ),
        share='model',
        relative=True,
    ),
)
class NearToFar(Mask):
    """Lets a token of a grid see the tokens that are not farther from the corner than itself.

    `key j visible to query i iff m_j <= m_i`, `m = r + c`. m is the sum of the components of a
    position, `t + r + c` of a video. So a token sees its whole diagonal, and all tokens of a
    diagonal can be written at once, see `posenc_jax.lab.decoding.nar`. Tokens that are not on the
    grid are conditions: all tokens of the grid see them, and they see those of them that are not
    later. A decode cache needs tokens in the order of `near_to_far_order`. Differs from the paper:
    nothing.

    Raises:
      ValueError: at call, positions without components.

    Reference: He et al., arXiv 2503.10696.

    Example:
      >>> import posenc_jax as pj
      >>> t = pj.Tokens.of(positions=near_to_far_positions((2, 2), conditions=1)[None])
      >>> pj.make('nar()').mask(t, t)[0, 0].sum(-1).tolist()
      [1, 2, 4, 4, 5]
    """

    components = 2
    traits = frozenset({'decides_causality', 'sees_later'})

    def allow(self, tq: Tokens, tk: Tokens) -> Array:
        return nar_mask(tq.pos, tk.pos, tq.index, tk.index)

    def may_see(self, tq, tk):
        # A negative sum may be that of a condition, or of a grid that was moved.
        return (tk.position_low <= tq.position_high) | (tq.position_high < 0)
