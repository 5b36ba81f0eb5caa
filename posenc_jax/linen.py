"""The attention layer as a Flax Linen module.

    layer = posenc_jax.linen.Attention('rope()', width=64, heads=4)
    variables = layer.init(jax.random.key(0), x)
    y = layer.apply(variables, x)

x is [B, T, 64], and so is y.
"""

from flax import nnx

from posenc_jax.model.attention import Attention as _Attention

__all__ = ['Attention']
__dir__ = __all__.copy


def Attention(*args, **kwargs):  # noqa: N802 (the name of a module)
    """`posenc_jax.Attention` as a Linen module; the arguments are the same, without `rngs`.

    Parameters are drawn from the key of `init`. A call takes the same arguments as a call of
    `posenc_jax.Attention`. `start` and `step` are called by `apply(..., nnx_method='start')`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = Attention('rope()', width=8, heads=2)
      >>> x = jnp.ones((1, 5, 8))
      >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
      (1, 5, 8)
    """
    return nnx.bridge.to_linen(_Attention, *args, **kwargs)
