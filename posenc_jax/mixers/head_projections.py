"""Projections of a mixer to the heads of its layer, and back."""

from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.products import linear
from posenc_jax.layer.layers import normal


def input_weights(
    rngs: nnx.Rngs, model_dim: int, heads: int, head_dim: int, *, gain: float = 1.0
) -> nnx.Param:
    """Weights [D, H, F] of `to_heads`, with which inputs of unit variance give `gain**2`."""
    axes = ('width', 'heads', 'head_dim')
    return normal(rngs, (model_dim, heads, head_dim), model_dim, axes, gain=gain)


def output_weights(
    rngs: nnx.Rngs, heads: int, head_dim: int, model_dim: int, layers: int
) -> nnx.Param:
    """Weights [H, F, D] of `from_heads`, scaled as those of attention in a model of this depth."""
    axes, gain = ('heads', 'head_dim', 'width'), (2 * layers) ** -0.5
    return normal(rngs, (heads, head_dim, model_dim), heads * head_dim, axes, gain=gain)


def to_heads(x: Float[Array, 'B T D'], w: Float[Array, 'D H F']) -> Float[Array, 'B T H F']:
    """`x w` for each head, in the dtype of `x`."""
    return linear(x, w.reshape(w.shape[0], -1)).reshape(*x.shape[:2], *w.shape[1:])


def from_heads(x: Float[Array, 'B T H F'], w: Float[Array, 'H F D']) -> Float[Array, 'B T D']:
    """The sum of `x w` over the heads, in the dtype of `x`."""
    return linear(x.reshape(*x.shape[:2], -1), w.reshape(-1, w.shape[-1]))
