"""Sliding-window mask."""

from posenc_jax.core.families import Mask
from posenc_jax.core.registry import Card, Promises, register


@register(
    'window',
    kind='encoding',
    card=Card(
        name='sliding window',
        title='Longformer: The Long-Document Transformer',
        arxiv='2004.05150',
        door='mask',
        equation='key j visible to query i iff |index_i - index_j| < size',
        source='allenai/longformer',
        authors='Beltagy, Iz and Peters, Matthew E. and Cohan, Arman',
        year=2020,
        example='window(size=5)',
        share='model',
        promises=Promises(relative=True),
    ),
)
class Window(Mask):
    """Keys at most `size - 1` tokens away in the sequence; combines with causal or full attention.

    Differs from the paper: `size` counts one side and the query itself, and there is neither dilation nor global tokens.

    Args:
      size: tokens visible on one side, the query included; at least 1.

    Raises:
      ValueError: size below 1.

    Reference: Beltagy, Peters, Cohan, arXiv 2004.05150.

    Example:
      >>> import posenc_jax as pj
      >>> t = pj.Tokens.of(length=3)
      >>> pj.make('window(size=2)', causal=True).mask(t, t)[0, 0].sum(-1).tolist()
      [1, 2, 2]
    """

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f'window size must be at least 1, got {size}')
        self.size = size

    def allow(self, tq, tk):
        distance = tq.index[:, :, None] - tk.index[:, None, :]
        return (abs(distance) < self.size)[:, None]

    def may_see(self, tq, tk):
        return (tk.index_high > tq.index_low - self.size) & (tk.index_low < tq.index_high + self.size)
