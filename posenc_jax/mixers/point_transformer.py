"""Point Transformer: vector attention of a point over its nearest neighbours."""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.base.products import linear
from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer.layers import normal, zeros
from posenc_jax.layer.whole_mixer import WholeMixer
from posenc_jax.methods.point_transformer_bias import check_points
from posenc_jax.protocol.bounds import Divides, Ge, Size
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens


def point_transformer_neighbours(
    tok: Tokens, count: int
) -> tuple[Int[Array, '#B L near'], Bool[Array, '#B L near']]:
    """The places of the `count` nearest real points of every point, itself among them, the nearest
    first; and which of them exist, where a cloud has fewer.

    Example:
      >>> places, there = point_transformer_neighbours(
      ...     Tokens.of(positions=[[[0.0], [5.0], [2.0]]]), 2
      ... )
      >>> places.tolist(), bool(there.all())
      ([[[0, 2], [1, 2], [2, 0]]], True)
    """
    pos = jax.lax.stop_gradient(tok.pos.astype(jnp.float32))
    squares = jnp.zeros((*pos.shape[:2], pos.shape[1]), jnp.float32)
    for along in jnp.moveaxis(pos, -1, 0):  # no array has a number for each pair and component
        squares = squares + jnp.square(along[:, :, None] - along[:, None])
    if tok.valid is not None:
        squares = jnp.where(tok.valid[:, None], squares, jnp.inf)
    if tok.segment is not None:
        same = tok.segment[:, :, None] == tok.segment[:, None]
        squares = jnp.where(same, squares, jnp.inf)
    distance, places = jax.lax.top_k(-squares, min(count, pos.shape[1]))
    return places, distance > -jnp.inf


def point_transformer_attention(
    q: Float[Array, 'B L D'],
    k: Float[Array, 'B L near D'],
    v: Float[Array, 'B L near D'],
    delta: Float[Array, '#B L near D'],
    there: Bool[Array, '#B L near'],
    gamma: Callable[[Float[Array, 'B L near D']], Float[Array, 'B L near M']],
) -> Float[Array, 'B L D']:
    """`sum_j softmax_j(gamma(k_j - q_i + delta_ij)) (v_j + delta_ij)`, channel by channel; of M
    weights channel c has the weight c mod M.

    Args:
      q: of the points.
      k, v: of the neighbours of every point.
      delta: codes of the offsets to the neighbours.
      there: which neighbours exist.
      gamma: gives M logits, a divisor of D, for every neighbour.
    """
    logits = gamma(k - q[:, :, None] + delta).astype(jnp.float32)
    logits = jnp.where(there[..., None], logits, -1e30)
    weights = jnp.where(there[..., None], jax.nn.softmax(logits, axis=2), 0.0)
    weights = jnp.tile(weights, q.shape[-1] // weights.shape[-1])
    return (weights * (v + delta).astype(jnp.float32)).sum(2).astype(v.dtype)


@register(
    'point_transformer',
    kind='mixer',
    card=Card(
        name='Point Transformer',
        example='point_transformer(neighbours=4)',
        use_when='You have clouds of points and each should see its nearest neighbours only.',
        relative=True,
        needs_training=True,
    ),
)
class PointTransformer(WholeMixer):
    """Vector attention of a point over its nearest neighbours, with codes of their offsets.

    `y_i = sum_j softmax_j(gamma(W_k x_j - W_q x_i + delta_ij)) (W_v x_j + delta_ij)`, `delta_ij =
    V2 relu(V1 (p_i - p_j) + c1) + c2`, over the nearest neighbours j of i, i itself among them. The
    softmax is taken for every channel, and gamma, `G2 relu(G1 relu(g h + b) + d1)`, gives D /
    share weights: channel c reads the weight c mod (D / share). Positions are coordinates, as they
    are; shifting all points changes nothing. The neighbours are found from all distances of a
    cloud, so memory has L^2 numbers. Points of padding are no neighbours, and packed clouds do not
    see each other.

    Differs from the paper: no batch norm. What a trained one does is in the linear maps beside it
    or, before the first ReLU of gamma, in a factor g and a shift b for each channel. The last bias
    of gamma is left out, since the softmax cancels it. The layer stands in a pre-norm block with a
    linear map of the result, where the paper has linear maps before and behind it. The code takes
    the offset of the neighbour from the point, -(p_i - p_j).

    Args:
      neighbours: how many neighbours a point has; 8 at full resolution in the paper's code.
      share: how many channels have one weight, a divisor of D.
      components: of a position.

    Raises:
      ValueError: at call, positions with another number of components, or a decode step.

    Reference: Zhao, Jiang, Jia, Torr, Koltun, arXiv 2012.09164.
    """

    def __init__(
        self,
        neighbours: Size = 16,
        share: Annotated[int, Ge(1), Divides('model_dim')] = 8,
        components: Size = 3,
        model_dim: int = CONTEXT,
        layers: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.neighbours, self.components = neighbours, components
        width, shared = model_dim, model_dim // share
        into = lambda: normal(rngs, (width, width), width, ('width', None))
        self.w_q, self.w_k, self.w_v = into(), into(), into()
        self.b_q, self.b_k, self.b_v = (zeros((width,), ('channels',)) for _ in 'qkv')
        self.v1 = normal(rngs, (components, components), components, (None, None))
        self.c1 = zeros((components,), ('components',))
        self.v2 = normal(rngs, (components, width), components, (None, None))
        self.c2 = zeros((width,), ('channels',))
        self.factor = nnx.Param(jnp.ones(width, jnp.float32), axes=(None,))
        self.shift = zeros((width,), ('channels',))
        self.g1 = normal(rngs, (width, shared), width, (None, None))
        self.d1 = zeros((shared,), ('weights',))
        self.g2 = normal(rngs, (shared, shared), shared, (None, None))
        gain = (2 * layers) ** -0.5
        self.w_out = normal(rngs, (width, width), width, (None, 'width'), gain=gain)

    def whole(self, x, tok):
        check_points('point_transformer', tok.pos, self.components)
        places, there = point_transformer_neighbours(tok, self.neighbours)
        batch, count = len(x), places.shape[2]
        of_points = jnp.broadcast_to(places, (batch, *places.shape[1:])).reshape(batch, -1, 1)

        def neighbours_of(a):
            found = jnp.take_along_axis(a, of_points, axis=1, mode='clip')
            return found.reshape(len(a), -1, count, a.shape[-1])

        project = lambda w, b: linear(x, w[...]) + b[...].astype(x.dtype)
        q = project(self.w_q, self.b_q)
        k, v = (
            neighbours_of(project(w, b)) for w, b in ((self.w_k, self.b_k), (self.w_v, self.b_v))
        )
        pos = jnp.broadcast_to(tok.pos.astype(jnp.float32), (batch, *tok.pos.shape[1:]))
        delta = self._delta(pos[:, :, None] - neighbours_of(pos)).astype(x.dtype)
        out = point_transformer_attention(q, k, v, delta, there, self._gamma)
        return linear(out, self.w_out[...])

    def _delta(self, offset: Float[Array, 'B L near P']) -> Float[Array, 'B L near D']:
        dot = lambda a, b: jnp.matmul(a, b[...], precision=jax.lax.Precision.HIGHEST)
        hidden = jax.nn.relu(dot(offset, self.v1) + self.c1[...])
        return dot(hidden, self.v2) + self.c2[...]

    def _gamma(self, h: Float[Array, 'B L near D']) -> Float[Array, 'B L near M']:
        of = lambda a: a[...].astype(h.dtype)
        hidden = jax.nn.relu(of(self.factor) * h + of(self.shift))
        hidden = jax.nn.relu(linear(hidden, self.g1[...]) + of(self.d1))
        return linear(hidden, self.g2[...])
