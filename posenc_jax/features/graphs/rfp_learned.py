"""The learned operator of random feature propagation: attention among the neighbours of a node."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.base.orthonormal import orthonormal_rows
from posenc_jax.features.graphs.encoder import GraphNetwork
from posenc_jax.protocol.checks import is_size
from posenc_jax.protocol.errors import check_choice

Normalise = Literal['qr', 'l2', 'none']
# A row of attention can repeat another (equal nodes of a clique), so S alone has a low rank. To
# make columns orthonormal needs full rank, in float32.
_SHIFT = 1e-3


def neighbour_attention(
    nodes: Float[Array, '*B N D'],
    w_q: Float[Array, 'D d'],
    w_k: Float[Array, 'D d'],
    adjacency: Bool[Array, '*B N N'],
    valid: Bool[Array, '*B N'],
) -> Float[Array, '*B N N']:
    """`S_ij = softmax over j in N(i) and i of (W_q f_i) . (W_k f_j) / sqrt(d)`, float32; 0 for
    padding.
    """
    precise = jax.lax.Precision.HIGHEST
    q = jnp.einsum('...nd,de->...ne', nodes.astype(jnp.float32), w_q, precision=precise)
    k = jnp.einsum('...nd,de->...ne', nodes.astype(jnp.float32), w_k, precision=precise)
    s = jnp.einsum('...ie,...je->...ij', q, k, precision=precise) / q.shape[-1] ** 0.5
    near = adjacency.astype(bool) | jnp.eye(s.shape[-1], dtype=bool)
    near &= valid[..., :, None] & valid[..., None, :]
    return jnp.where(near, jax.nn.softmax(jnp.where(near, s, -1e30), axis=-1), 0.0)


def propagate_learned(
    operator: Float[Array, '*B N N'],
    start: Float[Array, '*B N r'],
    steps: int,
    normalise: Normalise = 'qr',
) -> Float[Array, '*B N F']:
    """`[X_0 | X_1 | ... | X_P]` with derivatives by S, for padded graphs, float32.

    As `rfp_features` of the host, but 'qr' always takes `S + 1e-3 I`. A column of X_0 that is
    0 everywhere stays 0, so graphs of fewer nodes than features have zeros there.
    """
    n, r = start.shape[-2:]
    x = start.astype(jnp.float32)
    present = (x != 0).any(-2)  # [..., r]
    # Further rows, of which each is 1 in a column of zeros: the columns are independent, and the
    # rows of the graph keep their zeros.
    rows = jnp.where(present, 0.0, 1.0)[..., None] * jnp.eye(r)

    def step(x, _):
        y = jnp.matmul(operator, x, precision=jax.lax.Precision.HIGHEST)
        if normalise == 'l2':
            square = (y * y).sum(-2, keepdims=True)
            some = square > 0
            y = jnp.where(some, y * jax.lax.rsqrt(jnp.where(some, square, 1.0)), 0.0)
        elif normalise == 'qr':
            columns = jnp.concatenate([y + _SHIFT * x, rows], axis=-2)
            q = jnp.swapaxes(orthonormal_rows(jnp.swapaxes(columns, -1, -2)), -1, -2)
            y = q[..., :n, :]
        return y, y

    _, later = jax.lax.scan(step, x, length=steps)
    later = jnp.moveaxis(later, 0, -2).reshape(*x.shape[:-1], steps * r)
    return jnp.concatenate([x, later], axis=-1)


class LearnedPropagation(GraphNetwork):
    """The trained part of `rfp(operator='learned')`: it propagates X_0 inside the model.

    `[X_0 | X_1 | ... | X_P]` with the S of `neighbour_attention` on the node features of the data.

    Args:
      node_width: D, the node features of the data; a task without any gives ones, D = 1, and S is
        then the mean over a node and its neighbours.
      features, steps, normalise: r, P, and 'qr', 'l2' or 'none'.
      key_width: d.

    Raises:
      SpecError, ValueError: an unknown `normalise`; sizes below 1.
    """

    def __init__(
        self,
        node_width: int,
        features: int,
        steps: int,
        *,
        normalise: Normalise = 'qr',
        key_width: int = 16,
        rngs: nnx.Rngs,
    ):
        sizes = dict(node_width=node_width, features=features, steps=steps, key_width=key_width)
        for name, size in sizes.items():
            if not is_size(size):
                raise ValueError(f'LearnedPropagation {name} must be at least 1, got {size}')
        self.normalise = check_choice('rfp normalise', normalise, get_args(Normalise))
        self.steps, self.width = steps, features * (steps + 1)
        draw = lambda: jax.random.normal(rngs.params(), (node_width, key_width)) * node_width**-0.5
        self.w_q = nnx.Param(draw(), axes=('width', None))
        self.w_k = nnx.Param(draw(), axes=('width', None))

    def __call__(self, features, nodes, adjacency, valid):
        s = neighbour_attention(nodes, self.w_q[...], self.w_k[...], adjacency, valid)
        return propagate_learned(s, features, self.steps, self.normalise)
