"""Networks of graphs that run on several signals of the nodes at once: the trained parts of
encoders.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

_PRECISE = jax.lax.Precision.HIGHEST


def normalised(x: Float[Array, '... C']) -> Float[Array, '... C']:
    """The channels of a node with mean 0 and deviation 1; equal channels become 0.

    Example:
      >>> normalised(jnp.array([[1.0, 3.0], [2.0, 2.0]])).round(3).tolist()
      [[-1.0, 1.0], [0.0, 0.0]]
    """
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


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
        for number, (w, b) in enumerate(zip(self.weights, self.biases)):
            x = jax.nn.relu(x) if number else x
            x = jnp.matmul(x, w[...], precision=_PRECISE) + b[...]
        return x


class SignalGIN(nnx.Module):
    """Layers `x_i <- MLP(x_i + sum of the neighbours' x_j)`, with nothing but a norm between them,
    for several signals on one graph.

    Args:
      mlps: of the layers.
      norm: whether channels are normalised between the layers, see `normalised`.
    """

    def __init__(self, mlps: Sequence[Mlp], norm: bool):
        self.mlps, self.norm = nnx.List(mlps), norm

    def __call__(
        self, x: Float[Array, '*B M N C'], edges: Float[Array, '*B N N']
    ) -> Float[Array, '*B M N G']:
        """The signals of all nodes.

        Args:
          x: M signals of C channels.
          edges: the adjacency, with zeros for padding.
        """
        for number, mlp in enumerate(self.mlps):
            x = normalised(x) if number and self.norm else x
            x = mlp(x + jnp.einsum('...nm,...kmc->...knc', edges, x, precision=_PRECISE))
        return x


def real_edges(
    adjacency: Bool[Array, '*B N N'], valid: Bool[Array, '*B N']
) -> Float[Array, '*B N N']:
    """The adjacency as numbers, with zeros for padding."""
    return (adjacency & valid[..., None] & valid[..., None, :]).astype(jnp.float32)
