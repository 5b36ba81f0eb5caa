"""Swin V2: a small network of the logarithm of the offset, and cosine attention."""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.products import scaled_dot_product
from posenc_jax.methods.swin_table import OffsetTable, Side, with_rows
from posenc_jax.protocol.bounds import CONTEXT, Ge, Le, NonNegative
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.families import check_heads
from posenc_jax.protocol.registry import Card, register

LARGEST = 16.0  # the bias lies between 0 and this number
REACH = 8.0  # the largest trained offset, in the units of the logarithm
HOTTEST = 100.0  # the largest factor of a cosine
SHORTEST = 1e-6  # shorter vectors are divided by this number


def swin_v2_cpb_coordinates(
    offset: Num[Array, '... 2'], rows: int, columns: int
) -> Float[Array, '... 2']:
    """`sign(x) log2(|x| + 1) / 3`, `x = 8 offset / (size - 1)`, float32: 1.0566 at the largest
    offset of a window of `rows` x `columns` cells.
    """
    x = offset.astype(jnp.float32) * (REACH / np.array([rows - 1, columns - 1], np.float32))
    return jnp.sign(x) * jnp.log2(jnp.abs(x) + 1) / math.log2(REACH)


def swin_v2_cpb_network(
    coordinates: Float[Array, '... 2'],
    w1: Float[Array, 'hidden 2'],
    b1: Float[Array, 'hidden'],
    w2: Float[Array, 'hidden N'],
) -> Float[Array, '... N']:
    """`16 sigmoid(W2 relu(W1 z + b1))`, float32."""
    dot = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return LARGEST * jax.nn.sigmoid(dot(jax.nn.relu(dot(coordinates, w1.T) + b1), w2))


def swin_v2_cpb_logits(
    q: Float[Array, 'B N T H'], k: Float[Array, 'B K S H'], tau: Float[Array, 'N']
) -> Float[Array, 'B N T S']:
    """`cos(q_i, k_j) exp(min(tau, ln 100))`, float32; tau has a number for each query head.

    Example:
      >>> q, k = jnp.array([[[[3.0, 4.0]]]]), jnp.array([[[[2.0, 0.0], [0.0, 1.0]]]])
      >>> swin_v2_cpb_logits(q, k, jnp.log(jnp.array([10.0]))).round(4).tolist()
      [[[[6.0, 8.0]]]]
    """

    def inverse_norms(a):
        squares = jnp.square(a.astype(jnp.float32)).sum(-1)
        return jax.lax.rsqrt(jnp.maximum(squares, SHORTEST**2))

    of_k = jnp.repeat(inverse_norms(k), q.shape[1] // k.shape[1], axis=1)
    factor = jnp.exp(jnp.minimum(tau.astype(jnp.float32), math.log(HOTTEST))) * q.shape[-1] ** 0.5
    of_q = factor[:, None] * inverse_norms(q)
    return scaled_dot_product(q, k) * of_q[..., None] * of_k[:, :, None]


@register(
    'swin_v2_cpb',
    kind='encoding',
    card=Card(
        name='Swin V2 continuous position bias',
        example='swin_v2_cpb(4, 5, hidden=16)',
        use_when='You train on images and read larger windows than in training.',
        relative=True,
        needs_training=True,
    ),
)
class SwinV2CPB(OffsetTable):
    """Replaces the logits by cosines, and adds a trained function of the offset in rows and
    columns.

    `logit_ij = exp(min(tau_h, ln 100)) cos(q_i, k_j) + 16 sigmoid(W2 relu(W1 z_ij + b1))_h`, `z_ij
    = sign(x) log2(|x| + 1) / 3`, `x = 8 (p_i - p_j) / (size - 1)`. Positions are (row, column), and
    size - 1 is that of the trained window, rows - 1 and columns - 1. In a larger window of `size`
    cells the same network is evaluated at the larger offsets, of which it reads the logarithm.
    Parts of a chain that change the logits act on these. With `cosine=False` the bias is added to
    the usual logits.

    The network is evaluated once for each offset in each tile, not for each pair of tokens. Pairs
    with a token that is not on the grid get 8, the bias of a network that gives 0.

    Differs from the paper: vectors shorter than 1e-6 are divided by 1e-6 (in the code 1e-12).
    Biases of the projections are those of the layer (the code has them for queries and values).

    Args:
      rows, columns: of the window of training, at least 2.
      size: rows and columns of the window in which the tokens stand; None for that of training.
      hidden: units of the network.
      cosine: whether logits are cosines times a trained factor, 10 at first.
      std: standard deviation of the first W1 and W2; b1 starts at 0.
      heads: N, from the model.

    Raises:
      ValueError: a window with one row or one column, by whose size minus 1 nothing is divided; at
        call, positions that are not integers [B, L, 2], or tokens that need a larger window. Where
        positions are traced, such an offset gives NaN.

    Reference: Liu, Hu, Lin, Yao, Xie, Wei, Ning, Cao, Zhang, Dong, Wei, Guo, arXiv 2111.09883.
    """

    traits = frozenset({'forms_logits'})

    def __init__(
        self,
        rows: Annotated[int, Ge(2), Le(256)],
        columns: Annotated[int, Ge(2), Le(256)],
        size: tuple[Side, Side] | None = None,
        hidden: Annotated[int, Ge(1), Le(4096)] = 512,
        cosine: bool = True,
        std: NonNegative = 0.02,
        heads: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.trained = rows, columns
        self.window = (rows, columns) if size is None else size
        self.w1 = drawn_normal(rngs, (hidden, 2), std, (None, None))
        self.b1 = nnx.Param(jnp.zeros(hidden, jnp.float32), axes=(None,))
        self.w2 = drawn_normal(rngs, (hidden, heads), std, (None, 'heads'))
        first = jnp.full(heads, math.log(10), jnp.float32)
        self.tau: Any = nnx.Param(first, axes=('heads',)) if cosine else None

    def entries(self):
        ends = (np.arange(1 - side, side, dtype=np.int32) for side in self.window)
        offsets = np.stack(np.meshgrid(*ends, indexing='ij'), axis=-1).reshape(-1, 2)
        z = swin_v2_cpb_coordinates(jnp.asarray(offsets), *self.trained)
        of_cells = swin_v2_cpb_network(z, self.w1[...], self.b1[...], self.w2[...])
        return with_rows(of_cells, 3, LARGEST / 2)

    def logits(self, s, q, k, tq, tk, seen, carry):
        check_heads('swin_v2_cpb', self.tau[...], q)
        cosines = swin_v2_cpb_logits(q, k, self.tau[...])
        return super().logits(cosines, q, k, tq, tk, seen, carry)


class BiasOfSwinV2(SwinV2CPB, where=lambda given: not given['cosine']):
    """The bias alone."""

    traits = frozenset()
    logits = OffsetTable.logits
