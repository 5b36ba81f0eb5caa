"""PEG: a depthwise convolution over the grid of tokens, between two layers, tells the positions."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.convolution import check_kernel, depthwise, over_grid
from posenc_jax.protocol.bounds import CONTEXT
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register

Padding = Literal['zeros', 'circular']


def peg(
    x: Float[Array, 'B rows columns C'],
    kernel: Float[Array, 'k k C'],
    bias: Float[Array, 'C'],
    *,
    circular: bool = False,
) -> Float[Array, 'B rows columns C']:
    """`x + DWConv(x) + bias` in the dtype of `x`; outside the grid are zeros, or its other side.

    Example:
      >>> peg(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1)), jnp.zeros(1))[0, :, :, 0].tolist()
      [[5.0, 7.0, 5.0], [7.0, 10.0, 7.0], [5.0, 7.0, 5.0]]
    """
    return x + depthwise(x, kernel, circular=circular) + bias.astype(x.dtype)


def check_depth(user: str, depth: int) -> int:
    """`depth` if layers can have this number.

    Raises:
      ValueError: a negative depth.
    """
    if depth < 0:
        raise ValueError(
            f'{user} depth is the number of the layer that it acts before, at least 0, got {depth}'
        )
    return depth


@register(
    'peg',
    kind='encoding',
    card=Card(
        name='PEG', example='peg() | full()', share='model', relative=True, needs_training=True
    ),
)
class Peg(Encoding):
    """Adds to the vector of every cell a weighted sum of its neighbours, behind the first layer.

    `y[r, s] = x[r, s] + b + sum_{i, j} w[i, j] x[r + i - (k-1)/2, s + j - (k-1)/2]` for each
    channel, on the grid of tokens (`Tokens.grid`). Tokens in front of the grid, such as a class
    token, stay as they are. Zeros outside the grid are the only source of absolute positions, and
    further layers carry them inward; with padding='circular' the grid is a torus and there is none.
    Before the first layer (`depth=0`) a kernel of 3 reaches too little; several of them behind one
    another are `peg(depth=1) | peg(depth=2)`. A pyramid names it for every stage. Weights are
    normal with the variance 2 / k^2, b is 0, and weight decay leaves both alone.

    Differs from the paper: circular padding, which `polyphase_anchor` uses. The form for language
    models is the mixer `peg_causal`.

    Args:
      kernel: k, odd.
      padding: 'zeros' or 'circular'.
      depth: the layer that it acts before, counted from 0.
      model_dim: C.
      rngs: draws the weights.

    Raises:
      ValueError: an even kernel, a negative depth; at call, tokens on no grid, or vectors of
        another width.

    Reference: Chu et al., arXiv 2102.10882.
    """

    traits = frozenset({'sees_later', 'moves_positions', 'reads_grid'})

    def __init__(
        self,
        kernel: int = 3,
        padding: Padding = 'zeros',
        depth: int = 1,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        check_kernel(self.card.key, kernel)
        self.padding = padding
        self.depth = check_depth(self.card.key, depth)
        drawn = jax.random.normal(rngs.params(), (kernel, kernel, model_dim), jnp.float32)
        self.kernel = nnx.Param(drawn * 2**0.5 / kernel, axes=(None, None, 'width'))
        self.bias = nnx.Param(jnp.zeros(model_dim, jnp.float32), axes=('width',))

    def embed(self, x, tok):
        name, width = self.card.key, self.bias.shape[0]
        if tok.grid is None:
            raise ValueError(
                f'{name} convolves over a grid of tokens, and these lie on none: use it in a model '
                "of images (model.patch), or the mixer 'peg_causal()' for a line of tokens"
            )
        if x.shape[-1] != width:
            raise ValueError(f'{name} was built for vectors of width {width}, got {x.shape[-1]}')
        kernel, bias = self.kernel[...], self.bias[...]
        read = x if tok.valid is None else jnp.where(tok.valid[..., None], x, 0)
        of_cells = lambda cells: peg(cells, kernel, bias, circular=self.padding == 'circular')
        out = over_grid(read, tok.grid, of_cells)
        return out if tok.valid is None else jnp.where(tok.valid[..., None], out, x)
