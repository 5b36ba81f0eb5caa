"""SegFormer's efficient attention, whose keys and values are those of a coarser grid."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer.grid_mixer import GridMixer
from posenc_jax.layer.layers import Norm, zeros
from posenc_jax.layer.projections import Projections
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.methods.polyphase_anchor import polyphase_anchor_image
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.masks import Full
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens


def spatial_reduction_grid(
    x: Float[Array, 'B rows columns C'], kernel: Float[Array, 'R R C C'], bias: Float[Array, 'C']
) -> Float[Array, 'B _ C']:
    """The cells of the grid that an R x R convolution with stride R leaves, row by row.

    Raises:
      ValueError: a grid that R does not divide; the message has the nearest size.
    """
    rate, (rows, columns) = kernel.shape[0], x.shape[1:3]
    if rows % rate or columns % rate:
        nearest = [max(1, round(size / rate)) * rate for size in (rows, columns)]
        raise ValueError(
            f'spatial_reduction rate={rate} does not divide a grid of {rows} x {columns} tokens; '
            f'nearest grid: {nearest[0]} x {nearest[1]}'
        )
    # Windows do not overlap, so the convolution is a product with their cells.
    cells = x.reshape(len(x), rows // rate, rate, columns // rate, rate, x.shape[-1])
    out = jnp.einsum('brisjc,ijcd->brsd', cells, kernel.astype(x.dtype))
    return out.reshape(len(x), -1, out.shape[-1]) + bias.astype(x.dtype)


@register(
    'spatial_reduction',
    kind='mixer',
    card=Card(
        name='efficient self-attention',
        example='spatial_reduction(rate=2)',
        use_when='You have large images and attention to all of their patches takes too long.',
        relative=True,
        needs_training=True,
    ),
)
class SpatialReduction(GridMixer):
    """Attention without positions whose keys and values are those of a grid that is R times coarser
    in rows and columns, in the place of attention: `config.pattern` or the stages of a pyramid.

    `attention(q = W_q x, k, v = W x_R)`, `x_R = LayerNorm(Conv(x))` with an R x R kernel, stride R
    and epsilon 1e-5, where x are the normed tokens. It costs L^2 / R^2 inner products. With R = 1
    there is no convolution and no norm. Positions come from elsewhere: `config.model.mlp =
    'mix_ffn'`, or `peg` in other layers of the pattern.

    Differs from the paper: tokens in front of the grid, which it does not have, are keys as they
    are; the projections start as those of other layers. `anchor` is of arXiv 2306.07470.

    Args:
      rate: R; 8, 4, 2, 1 in the stages of the paper.
      anchor: whether the grid is rolled by its largest phase before it is reduced, see
        `polyphase_anchor`, so that shifts of the grid do not change what the keys are.
      bias: whether the projections have biases.

    Raises:
      ValueError: anchor=True with rate=1; at call, tokens on no grid, a grid that the rate does not
        divide, or a decode step.

    Reference: Xie et al., arXiv 2105.15203.

    Example:
      >>> sizes = dict(heads=2, kv_heads=2, head_dim=4, model_dim=8, layers=1)
      >>> mixer = SpatialReduction(rate=2, rngs=nnx.Rngs(0), **sizes)
      >>> mixer.whole(jnp.ones((1, 8, 8)), Tokens.on_grid(2, 4)).shape
      (1, 8, 8)
    """

    def __init__(
        self,
        rate: Size,
        anchor: bool = False,
        bias: bool = True,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        layers: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if anchor and rate == 1:
            raise ValueError(
                'spatial_reduction anchor=True chooses between the phases of a rate of at least 2, '
                'got rate=1'
            )
        self.rate, self.anchor = rate, anchor
        self.projections = Projections(
            model_dim,
            heads,
            kv_heads,
            head_dim,
            bias='all' if bias else 'none',
            gain=(2 * layers) ** -0.5,
            rngs=rngs,
        )
        if rate > 1:
            shape, std = (rate, rate, model_dim, model_dim), (2 / (rate**2 * model_dim)) ** 0.5
            self.kernel = drawn_normal(rngs, shape, std, (None, None, None, 'width'))
            self.bias = zeros((model_dim,), ('width',))
            self.norm = Norm('layernorm', model_dim, epsilon=1e-5)

    def keys(self, x: Float[Array, 'B L D'], grid: tuple[int, int]) -> Float[Array, 'B S D']:
        """What keys and values are projected from: the tokens in front, and the reduced grid."""
        if self.rate == 1:
            return x
        rows, columns = grid
        extra = x.shape[1] - rows * columns
        cells = x[:, extra:].reshape(len(x), rows, columns, x.shape[-1])
        if self.anchor:
            cells = polyphase_anchor_image(cells, self.rate)
        reduced = self.norm(spatial_reduction_grid(cells, self.kernel[...], self.bias[...]))
        return jnp.concatenate([x[:, :extra], reduced], axis=1)

    def mix(self, x, grid):
        read = self.keys(x, grid)
        q = self.projections.qkv(x)[0]
        _, k, v = self.projections.qkv(read)
        of = lambda a: Tokens.of(length=a.shape[1])
        return self.projections.output(sharded_attend(Full(), q, k, v, of(x), of(read)))
