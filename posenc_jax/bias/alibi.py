"""ALiBi: attention with linear biases."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.core.encoding import Constant
from posenc_jax.core.families import Bias, signed_distance
from posenc_jax.core.registry import Card, Promises, register
from posenc_jax.core.spec import CONTEXT


def alibi_slopes(heads: int) -> np.ndarray:
    """The geometric slopes m_h of `heads` heads, float64 [N]; the extra ones of a count that is no power of two come last.

    Raises:
      ValueError: fewer than one head.

    Example:
      >>> alibi_slopes(4).tolist()
      [0.25, 0.0625, 0.015625, 0.00390625]
    """
    if heads < 1:
        raise ValueError(f'ALiBi needs at least one head, got {heads}')
    power = 2 ** (heads.bit_length() - 1)
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    extra = 2.0 ** (-8.0 * np.arange(1, 2 * power + 1) / (2 * power))
    return np.concatenate([slopes, extra[0::2][: heads - power]])


def alibi_bias(slopes: Float[Array, 'N'], q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S']) -> Float[Array, '#B N T S']:
    """`-m_h |p_i - p_j|`, float32.

    Example:
      >>> alibi_bias(jnp.array([0.5]), jnp.array([[3]]), jnp.array([[0, 1, 2, 3]])).tolist()
      [[[[-1.5, -1.0, -0.5, -0.0]]]]
    """
    distance = jnp.abs(signed_distance(q_pos, k_pos)).astype(jnp.float32)
    return -slopes.astype(jnp.float32)[:, None, None] * distance[:, None]


@register(
    'alibi',
    kind='encoding',
    card=Card(
        name='ALiBi',
        title='Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation',
        arxiv='2108.12409',
        door='score',
        equation='logit_ij = q_i . k_j / sqrt(H) - m_h |i - j|',
        source='ofirpress/attention_with_linear_biases',
        authors='Press, Ofir and Smith, Noah A. and Lewis, Mike',
        year=2022,
        example='alibi()',
        share='model',
        promises=Promises(relative=True),
    ),
)
class ALiBi(Bias):
    """Penalises distance linearly, with one slope per head; acts on the logits.

    `b_ij = -m_h |i - j|`, `m_h = 2^(-8h/N)`. Differs from the paper: nothing in the causal case (the distance form gives
    the probabilities of the official key-position form); without a causal mask it is the symmetric variant.

    Args:
      slopes: m_h, one per head, in place of the paper's.
      heads: N, from the model.

    Raises:
      ValueError: slopes that are not one finite number per head.

    Reference: Press, Smith, Lewis, arXiv 2108.12409.

    Example:
      >>> import posenc_jax as pj
      >>> pj.make('alibi()', heads=8).slopes[...][:2].tolist()
      [0.5, 0.25]
    """

    def __init__(self, slopes: tuple[float, ...] | None = None, heads: int = CONTEXT):
        if slopes is not None and (len(slopes) != heads or not np.isfinite(slopes).all()):
            raise ValueError(f'alibi: {len(slopes)} slopes {slopes} for {heads} heads; expected one finite number per head')
        given = alibi_slopes(heads) if slopes is None else slopes
        self.slopes = Constant(jnp.asarray(given, jnp.float32), axes=('heads',))

    def bias(self, q_pos, k_pos):
        return alibi_bias(self.slopes[...], q_pos, k_pos)
