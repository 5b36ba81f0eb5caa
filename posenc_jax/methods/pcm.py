"""Positions of points: a linear map of the coordinates, added before every layer."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.protocol.bounds import CONTEXT, Count, Size
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.families import Embedding, check_token_width
from posenc_jax.protocol.registry import Card, register


def pcm_linear(points: Num[Array, '... P'], w: Float[Array, 'D P']) -> Float[Array, '... D']:
    """`W p`, float32.

    Example:
      >>> pcm_linear(jnp.array([1.0, 2.0, 3.0]), jnp.array([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]]))
      Array([4., 4.], dtype=float32)
    """
    return jnp.matmul(points.astype(jnp.float32), w.T, precision=jax.lax.Precision.HIGHEST)


def pcm_network(
    points: Num[Array, '... P'],
    w1: Float[Array, 'h P'],
    b1: Float[Array, 'h'],
    w2: Float[Array, 'h h'],
    b2: Float[Array, 'h'],
    w3: Float[Array, 'D h'],
) -> Float[Array, '... D']:
    """`W_3 relu(W_2 relu(W_1 p + b_1) + b_2)`, float32."""
    hidden = jax.nn.relu(pcm_linear(points, w1) + b1)
    return pcm_linear(jax.nn.relu(pcm_linear(hidden, w2) + b2), w3)


@register(
    'pcm',
    kind='encoding',
    card=Card(
        name='Point Cloud Mamba',
        example='pcm()',
        use_when='You have clouds of points and a model that reads them as a row.',
        share='model',
        needs_training=True,
    ),
)
class Pcm(Embedding):
    """Adds a linear map of the coordinates of a point to its vector, before every layer.

    `x_i <- x_i + W p_i`, one W [D, P] without bias for all layers. Positions are coordinates, [B,
    L, P] with P = 3 for points in space; they are read as they are, in any order of the points.
    Translation of a cloud adds one constant to all vectors. The mixer `pcm_layer` gives the order
    in which a recurrent layer reads the points: `'pcm() | pcm_layer(cheems())'`. For a W of its own
    in every layer, chain calls that act before one layer each: `'pcm(depth=0) | pcm(depth=1)'`.

    Differs from the paper: nothing for W; W starts as N(0, 1 / P). Of its network of three layers
    the activation (ReLU) and the biases (on both hidden layers) are ours.

    Args:
      hidden: units of the two hidden layers of a network in the place of W, `W_3 relu(W_2 relu(W_1
        p + b_1) + b_2)`; 2048 in the paper. 0 is W alone.
      depth: the layer before which it acts, from 0 on, or 'every' for all of them.
      components: P.

    Raises:
      ValueError: at call, positions with another number of components, or token vectors that are
        not D wide.

    Reference: Zhang, Yuan, Qi, Zhang, Zhou, Ji, Yan, Li, arXiv 2403.00762.
    """

    depth = 'every'

    def __init__(
        self,
        hidden: Count = 0,
        depth: Count | Literal['every'] = 'every',
        components: Size = 3,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.components, self.depth = components, depth
        draw = lambda fan_in, out, role: drawn_normal(
            rngs, (out, fan_in), fan_in**-0.5, (role, None)
        )
        zeros = lambda: nnx.Param(jnp.zeros(hidden, jnp.float32), axes=(None,))
        self.w: Any = draw(components, hidden, None) if hidden else None
        self.b1: Any = zeros() if hidden else None
        self.w2: Any = draw(hidden, hidden, None) if hidden else None
        self.b2: Any = zeros() if hidden else None
        self.w_out = draw(hidden or components, model_dim, 'width')

    def table(self, tok, width):
        if tok.pos.shape[2:] != (self.components,):
            raise ValueError(
                f'pcm(components={self.components}) needs positions [B, L, {self.components}], got '
                f'{tok.pos.shape}'
            )
        check_token_width('pcm', self.w_out.shape[0], width)
        if self.w is None:
            return pcm_linear(tok.pos, self.w_out[...])
        layers = self.w, self.b1, self.w2, self.b2, self.w_out
        return pcm_network(tok.pos, *(variable[...] for variable in layers))
