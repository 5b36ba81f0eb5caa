"""Mix-FFN: a feed-forward network that tells positions by a convolution over the grid of tokens."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.core.registry import Card, register
from posenc_jax.model.layers import linear, zeros


def depthwise(
    x: Float[Array, 'B rows columns C'], kernel: Float[Array, 'k k C'], *, circular: bool = False
) -> Float[Array, 'B rows columns C']:
    """Each channel's cross-correlation with its own odd kernel. Outside the grid are zeros, or its
    other side if it is a torus.

    Example:
      >>> depthwise(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1)))[0, :, :, 0].tolist()
      [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    channels, reach = x.shape[-1], kernel.shape[0] // 2
    sides = ((0, 0), (reach, reach), (reach, reach), (0, 0))
    return jax.lax.conv_general_dilated(
        jnp.pad(x, sides, mode='wrap' if circular else 'constant'),
        kernel[:, :, None].astype(x.dtype),
        (1, 1),
        'VALID',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=channels,
    )


def over_grid(x: Float[Array, 'B L C'], grid: tuple[int, int], f) -> Float[Array, 'B L C']:
    """`f` of the cells as [B, rows, columns, C]; the tokens in front of them stay as they are."""
    rows, columns = grid
    extra = x.shape[1] - rows * columns
    cells = f(x[:, extra:].reshape(len(x), rows, columns, x.shape[-1]))
    return jnp.concatenate([x[:, :extra], cells.reshape(len(x), -1, x.shape[-1])], axis=1)


@register(
    'mix_ffn',
    kind='mixer',
    card=Card(
        name='Mix-FFN',
        title='SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers',
        arxiv='2105.15203',
        door='mlp',
        equation='y = W_2 gelu(DWConv3x3(W_1 x + b_1) + b) + b_2',
        source='NVlabs/SegFormer',
        authors='Xie, Enze and Wang, Wenhai and Yu, Zhiding and Anandkumar, Anima and Alvarez, '
        'Jose M. and Luo, Ping',
        year=2021,
        example="config.model.mlp = 'mix_ffn'",
    ),
)
class MixFFN(nnx.Module):
    """The feed-forward network of a layer, with a depthwise convolution over the grid between its
    two linear maps; `config.model.mlp = 'mix_ffn'` puts it into every layer.

    `h = W_1 x + b_1`, then on the grid `h = DWConv3x3(h) + b` with zeros outside and without a
    residual, then `y = W_2 gelu(h) + b_2` with the erf form. Tokens in front of the grid skip the
    convolution. The zeros outside the grid are the only source of absolute positions.

    Differs from the paper: nothing. The reduced attention of its encoder is the mixer
    `spatial_reduction`, and its patches are `config.model.overlap`.

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
        draw = lambda std, *shape: (
            std * jax.random.truncated_normal(rngs.params(), -2, 2, (*stack, *shape), jnp.float32)
        )
        self.w_in = nnx.Param(draw(0.02, width, hidden), axes=('width', 'mlp'))
        self.b_in = zeros((hidden,), ('mlp',), stack=stack)
        kernel = (2 / 9) ** 0.5 * jax.random.normal(rngs.params(), (*stack, 3, 3, hidden))
        self.kernel = nnx.Param(kernel, axes=(None, None, 'mlp'))
        self.b_conv = zeros((hidden,), ('mlp',), stack=stack)
        self.w_out = nnx.Param(draw(0.02, hidden, width), axes=('mlp', 'width'))
        self.b_out = zeros((width,), ('width',), stack=stack)

    def __call__(
        self, x: Float[Array, 'B L D'], grid: tuple[int, int] | None
    ) -> Float[Array, 'B L D']:
        if grid is None:
            raise ValueError(
                "mlp='mix_ffn' convolves over a grid of tokens, and these lie on none; use 'gelu'"
            )
        shift = lambda h, bias: h + bias[...].astype(h.dtype)
        h = shift(linear(x, self.w_in[...]), self.b_in)
        mixed = lambda cells: shift(depthwise(cells, self.kernel[...]), self.b_conv)
        h = jax.nn.gelu(over_grid(h, grid, mixed), approximate=False)
        return shift(linear(h, self.w_out[...]), self.b_out)
