"""Networks of graphs that run on several signals of the nodes at once: the trained parts of
encoders.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.base.products import linear

_PRECISE = jax.lax.Precision.HIGHEST


def normalised(
    x: Float[Array, '*B N M C'], valid: Bool[Array, '*B N'], shift: Float[Array, 'C']
) -> Float[Array, '*B N M C']:
    """Each channel of each signal with mean 0 and deviation 1 over the real nodes, plus `shift`.

    So a signal depends on no other, and its nodes keep the ratios of their differences. A norm of
    each node by itself would delete them: of one channel it would leave the signs.

    Example:
      >>> signal = jnp.array([[[1.0]], [[3.0]], [[9.0]]])
      >>> real = jnp.array([True, True, False])
      >>> normalised(signal, real, jnp.array([0.5])).round(2).ravel()[:2].tolist()
      [-0.5, 1.5]
    """
    real = valid[..., None, None]
    count = jnp.maximum(real.sum(-3, keepdims=True), 1)
    mean = lambda a: jnp.where(real, a, 0.0).sum(-3, keepdims=True) / count
    x = x - mean(x)
    return x * jax.lax.rsqrt(mean(x * x) + 1e-5) + shift


class Mlp(nnx.Module):
    """Linear maps with biases, and relu between them and not behind the last.

    Args:
      sizes: channels before, between and after the maps.
    """

    def __init__(self, sizes: Sequence[int], rngs: nnx.Rngs):
        draw = lambda a, b: jax.random.normal(rngs.params(), (a, b)) * a**-0.5
        self.weights = nnx.List(
            nnx.Param(draw(a, b), axes=(None, None)) for a, b in zip(sizes, sizes[1:])
        )
        self.biases = nnx.List(nnx.Param(jnp.zeros(b), axes=(None,)) for b in sizes[1:])

    def __call__(self, x: Float[Array, '*L F']) -> Float[Array, '*L G']:
        with jax.default_matmul_precision('highest'):
            for number, (w, b) in enumerate(zip(self.weights, self.biases)):
                x = jax.nn.relu(x) if number else x
                x = linear(x, w[...]) + b[...]
        return x


class SignalGIN(nnx.Module):
    """Layers `x_i <- MLP(x_i + sum of the neighbours' x_j)`, with nothing but a norm between them,
    for several signals on one graph.

    Signals stand behind nodes, so that the sums over nodes are sums of long rows. The norm takes
    away the last bias of an MLP, so this bias is added behind it.

    Args:
      mlps: of the layers.
      norm: whether channels are normalised between the layers, see `normalised`.
    """

    def __init__(self, mlps: Sequence[Mlp], norm: bool):
        self.mlps, self.norm = nnx.List(mlps), norm

    def __call__(
        self, x: Float[Array, '*B N M C'], edges: Float[Array, '*B N N'], valid: Bool[Array, '*B N']
    ) -> Float[Array, '*B N M G']:
        """The signals of all nodes.

        Args:
          x: M signals of C channels.
          edges: the adjacency, with zeros for padding.
          valid: False for padding, which the norm does not read.
        """
        with_own = edges + jnp.eye(edges.shape[-1], dtype=edges.dtype)
        for number, mlp in enumerate(self.mlps):
            if number and self.norm:
                x = normalised(x, valid, self.mlps[number - 1].biases[-1][...])
            x = mlp(jnp.einsum('...nm,...mkc->...nkc', with_own, x, precision=_PRECISE))
        return x


def real_edges(
    adjacency: Bool[Array, '*B N N'], valid: Bool[Array, '*B N']
) -> Float[Array, '*B N N']:
    """The adjacency as numbers, with zeros for padding."""
    return (adjacency & valid[..., None] & valid[..., None, :]).astype(jnp.float32)
