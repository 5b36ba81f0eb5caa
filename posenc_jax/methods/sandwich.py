"""Sandwich: the inner product of sinusoidal embeddings as a bias."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.protocol.bounds import CONTEXT, Ge, Le, Multiple
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.families import Bias
from posenc_jax.protocol.registry import Card, register

_MOST_WAVES = 2**16


def sandwich_slopes(heads: int) -> np.ndarray:
    """`N / (8h)`, h = 1 .. N, float64 [N]: the factor of the shared curve for each head."""
    return heads / (8.0 * np.arange(1, heads + 1))


def sandwich_curve(
    q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S'], dim: int = 128
) -> Float[Array, '#B T S']:
    """`sum_t cos((p_i - p_j) / 10000^(2t/w)) - w/2`, t = 1 .. w/2.

    It is 0 at distance 0 and falls about as the logarithm of the distance. The sum is computed as
    the inner product of the cosines and sines of both positions, whose angles are exact at any
    position. This takes one matrix product per tile in place of w/2 cosines per pair.

    Args:
      dim: w, even and at least 2.

    Raises:
      ValueError: positions of several components.
    """
    if q_pos.ndim != 2 or k_pos.ndim != 2:
        raise ValueError(
            'sandwich takes one position per token [B, L], got positions of shape '
            f'{q_pos.shape}, {k_pos.shape}'
        )
    inv_freq = 10000.0 ** (-2.0 * np.arange(1, dim // 2 + 1) / dim)
    waves = lambda angles: jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    q, k = waves(phase(q_pos, inv_freq)), waves(phase(k_pos, inv_freq))
    return jnp.matmul(q, k.swapaxes(1, 2), precision=jax.lax.Precision.HIGHEST) - dim / 2


def sandwich_bias(
    slopes: Float[Array, 'N'], q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S'], dim: int = 128
) -> Float[Array, '#B N T S']:
    """`slopes_h` times `sandwich_curve`, float32."""
    return slopes.astype(jnp.float32)[:, None, None] * sandwich_curve(q_pos, k_pos, dim)[:, None]


@register(
    'sandwich',
    kind='encoding',
    card=Card(name='Sandwich', example='sandwich()', share='model', relative=True),
)
class Sandwich(Bias):
    """Adds the inner product of sinusoidal embeddings, scaled per head; acts on the logits.

    `logit_ij = q_i . k_j / sqrt(H) + b_ijh`, `b_ijh = (N / 8h) [sum_{t=1..w/2} cos((p_i - p_j) /
    10000^(2t/w)) - w/2]`, h = 1 .. N: about logarithmic in the distance, bounded by `-w N / 8h`,
    without parameters. Differs from the paper: nothing in the formula. It is evaluated per tile
    from positions, which may be fractional; the official code reads a table instead.

    Args:
      dim: w, even. It is independent of the model width and the head width, which some ports use
        instead.
      heads: N, from the model.

    Reference: Chi, Fan, Rudnicky, Ramadge, arXiv 2212.10356.

    Example:
      >>> import posenc_jax as pj
      >>> pj.make('sandwich()', heads=8).slopes[...][:2].tolist()
      [1.0, 0.5]
    """

    def __init__(
        self, dim: Annotated[int, Ge(2), Le(_MOST_WAVES), Multiple(2)] = 128, heads: int = CONTEXT
    ):
        self.dim = dim
        self.slopes = Constant(jnp.asarray(sandwich_slopes(heads), jnp.float32), axes=('heads',))

    def bias(self, q_pos, k_pos):
        return sandwich_bias(self.slopes[...], q_pos, k_pos, self.dim)
