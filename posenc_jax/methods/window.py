"""Sliding-window mask."""

from jaxtyping import Array, Bool, Int

from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.families import Mask
from posenc_jax.protocol.registry import Card, register


def window_mask(
    q_index: Int[Array, '#B T'], k_index: Int[Array, '#B S'], size: int
) -> Bool[Array, '#B 1 T S']:
    """`|index_i - index_j| < size`: the keys that are less than `size` tokens away on either side.

    Args:
      q_index, k_index: places of the tokens in their row. With numbers of blocks in their place and
        a size of 2, a query sees its own block and the neighbouring ones.
      size: number of tokens that are seen on one side, the query included.

    Reference: Beltagy, Peters, Cohan, arXiv 2004.05150.

    Example:
      >>> import jax.numpy as jnp
      >>> index = jnp.arange(4)[None]
      >>> window_mask(index, index, size=2)[0, 0].sum(-1).tolist()
      [2, 3, 3, 2]
    """
    distance = q_index[:, :, None] - k_index[:, None, :]
    return (abs(distance) < size)[:, None]


@register(
    'window',
    kind='encoding',
    card=Card(
        name='sliding window',
        example='window(size=5)',
        use_when=(
            'You want attention to the latest tokens only, for its speed or as a baseline '
            'without far context.'
        ),
        share='model',
        relative=True,
    ),
)
class Window(Mask):
    """Masks keys that are `size` or more tokens away; combines with causal or full attention.

    `key j visible to query i iff |index_i - index_j| < size`. With `aligned` a query sees the keys
    of its own block of `size` tokens and of the neighbouring blocks. With causal attention these
    are `size + 1` to `2 size` keys, as in the blockwise causal attention of xPos (arXiv 2212.10554,
    with blocks of half the trained length).

    Differs from the paper: `size` counts one side and the query itself, and there is neither
    dilation nor global tokens.

    Args:
      size: number of tokens visible on one side, including the query, or of a block.
      aligned: blocks begin at multiples of `size` in the document.

    Reference: Beltagy, Peters, Cohan, arXiv 2004.05150.

    Example:
      >>> import posenc_jax as pj
      >>> t = pj.Tokens.of(length=3)
      >>> pj.make('window(size=2)', causal=True).mask(t, t)[0, 0].sum(-1).tolist()
      [1, 2, 2]
    """

    def __init__(self, size: Size, aligned: bool = False):
        self.size, self.aligned = size, aligned

    @property
    def band(self):
        return None if self.aligned else self.size

    def allow(self, tq, tk):
        if self.aligned:
            return window_mask(tq.rank // self.size, tk.rank // self.size, 2)
        return window_mask(tq.index, tk.index, self.size)

    def may_see(self, tq, tk):
        if self.aligned:
            return (tk.rank_high > tq.rank_low - 2 * self.size) & (
                tk.rank_low < tq.rank_high + 2 * self.size
            )
        return (tk.index_high > tq.index_low - self.size) & (
            tk.index_low < tq.index_high + self.size
        )

    def sees_all(self, tq, tk):
        if self.aligned:
            return False
        return (tk.index_low > tq.index_high - self.size) & (
            tk.index_high < tq.index_low + self.size
        )
