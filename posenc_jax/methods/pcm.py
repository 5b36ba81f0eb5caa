"""Positions of points: a linear map of the coordinates, added before every layer."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.families import Embedding
from posenc_jax.protocol.registry import Card, Promises, register


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
    """`W_3 relu(W_2 relu(W_1 p + b_1) + b_2)`, float32.

    Example:
      >>> one = jnp.ones((1, 1))
      >>> pcm_network(jnp.array([3.0]), one, -jnp.ones(1), 2 * one, jnp.ones(1), one).tolist()
      [5.0]
    """
    hidden = jax.nn.relu(pcm_linear(points, w1) + b1)
    return pcm_linear(jax.nn.relu(pcm_linear(hidden, w2) + b2), w3)


@register(
    'pcm',
    kind='encoding',
    card=Card(
        name='Point Cloud Mamba',
        title='Point Cloud Mamba: Point Cloud Learning via State Space Model',
        arxiv='2403.00762',
        door='embed',
        equation='x_i <- x_i + W p_i before every layer, p_i the coordinates of a point',
        source='SkyworkAI/PointCloudMamba',
        authors='Zhang, Tao and Yuan, Haobo and Qi, Lu and Zhang, Jiangning and Zhou, Qianyu and '
        'Ji, Shunping and Yan, Shuicheng and Li, Xiangtai',
        year=2024,
        example='pcm()',
        share='model',
        promises=Promises(needs_training=True, fused=True),
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
      ValueError: components below 1, negative hidden or depth; at call, positions with another
        number of components, or token vectors that are not D wide.

    Reference: Zhang, Yuan, Qi, Zhang, Zhou, Ji, Yan, Li, arXiv 2403.00762.

    Example:
      >>> import posenc_jax as pj
      >>> points = pj.Tokens.of(positions=[[[0.0, 0.5, 1.0], [0.25, 0.5, 0.75]]])
      >>> pj.make('pcm()', model_dim=4, rngs=nnx.Rngs(0)).embed(jnp.zeros((1, 2, 4)), points).shape
      (1, 2, 4)
    """

    depth = 'every'

    def __init__(
        self,
        hidden: int = 0,
        depth: int | Literal['every'] = 'every',
        components: int = 3,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if components < 1:
            raise ValueError(f'pcm components must be at least 1, got {components}')
        if hidden < 0:
            raise ValueError(f'pcm hidden must be at least 0, which is no network, got {hidden}')
        if depth != 'every' and depth < 0:
            raise ValueError(f"pcm depth must be a layer from 0 on, or 'every', got {depth}")
        self.components, self.depth = components, depth
        draw = lambda fan_in, out, role: nnx.Param(
            jax.random.normal(rngs.params(), (out, fan_in), jnp.float32) * fan_in**-0.5,
            axes=(role, None),
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
        if self.w_out.shape[0] != width:
            raise ValueError(
                f'pcm was built for token vectors of width {self.w_out.shape[0]}, got {width}'
            )
        if self.w is None:
            return pcm_linear(tok.pos, self.w_out[...])
        layers = self.w, self.b1, self.w2, self.b2, self.w_out
        return pcm_network(tok.pos, *(variable[...] for variable in layers))
