"""Mix-FFN: a feed-forward network that tells positions by a convolution over the grid of tokens."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.convolution import depthwise, over_grid
from posenc_jax.base.products import linear
from posenc_jax.layer.layers import zeros
from posenc_jax.protocol.registry import Card, register


@register(
    'mix_ffn',
    kind='mixer',
    card=Card(
        name='Mix-FFN',
        door='mlp',
        equation='y = W_2 gelu(DWConv3x3(W_1 x + b_1) + b) + b_2',
        example="config.model.mlp = 'mix_ffn'",
        use_when=(
            'You train on images without positions and read other sizes; the measured '
            'claim is open.'
        ),
    ),
)
class MixFFN(nnx.Module):
    """The feed-forward network of a layer, with a depthwise convolution over the grid between its
    two linear maps; `config.model.mlp = 'mix_ffn'` puts it into every layer.

    `h = W_1 x + b_1`, then on the grid `h = DWConv3x3(h) + b` with zeros outside and without a
    residual, then `y = W_2 gelu(h) + b_2` with the erf form. Tokens in front of the grid skip the
    convolution. The zeros outside the grid are the only source of absolute positions; beside
    `polyphase_anchor` the grid is a torus, and there is none. Weights of the linear maps are normal
    with a deviation of 0.02, those of the convolution with one of sqrt(2 / 9), and biases are 0.

    Differs from the paper: nothing. The reduced attention of its encoder is the mixer
    `spatial_reduction`, and its patches are `config.model.overlap`, behind which there is no norm
    as in the released code.

    Args:
      width: C.
      hidden: units e C; e = 4 in the paper.
      stack: leading dimensions of all variables.

    Raises:
      ValueError: at call, tokens that lie on no grid.

    Reference: Xie et al., arXiv 2105.15203.

    Example:
      >>> ffn = MixFFN(4, 16, stack=(), rngs=nnx.Rngs(0))
      >>> ffn(jnp.ones((1, 6, 4)), (2, 3)).shape
      (1, 6, 4)
    """

    def __init__(self, width: int, hidden: int, *, stack: tuple[int, ...], rngs: nnx.Rngs):
        # The released code cuts the normal law at -2 and 2, a hundred deviations from its mean.
        draw = lambda std, *shape: (
            std * jax.random.normal(rngs.params(), (*stack, *shape), jnp.float32)
        )
        self.w_in = nnx.Param(draw(0.02, width, hidden), axes=('width', 'mlp'))
        self.b_in = zeros((hidden,), ('mlp',), stack=stack)
        kernel = (2 / 9) ** 0.5 * jax.random.normal(rngs.params(), (*stack, 3, 3, hidden))
        self.kernel = nnx.Param(kernel, axes=(None, None, 'mlp'))
        self.b_conv = zeros((hidden,), ('mlp',), stack=stack)
        self.w_out = nnx.Param(draw(0.02, hidden, width), axes=('mlp', 'width'))
        self.b_out = zeros((width,), ('width',), stack=stack)
        self.circular = False  # whether the grid is a torus, which the stack of layers says

    def __call__(
        self, x: Float[Array, 'B L D'], grid: tuple[int, int] | None
    ) -> Float[Array, 'B L D']:
        if grid is None:
            raise ValueError(
                "mlp='mix_ffn' convolves over a grid of tokens, and these lie on none; use 'gelu'"
            )
        shift = lambda h, bias: h + bias[...].astype(h.dtype)
        h = shift(linear(x, self.w_in[...]), self.b_in)
        mixed = lambda cells: shift(
            depthwise(cells, self.kernel[...], circular=self.circular), self.b_conv
        )
        h = jax.nn.gelu(over_grid(h, grid, mixed), approximate=False)
        return shift(linear(h, self.w_out[...]), self.b_out)
