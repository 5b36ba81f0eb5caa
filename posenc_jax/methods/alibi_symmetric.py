"""Symmetric ALiBi for encoders, as used by BEACON."""

from posenc_jax.methods.alibi import ALiBi
from posenc_jax.protocol.bounds import CONTEXT, PerHead
from posenc_jax.protocol.registry import Card, register


@register(
    'alibi_symmetric',
    kind='encoding',
    card=Card(
        name='ALiBi, symmetric',
        example='alibi_symmetric()',
        use_when=(
            'You want ALiBi in an encoder, which reads both directions, for sequences longer than '
            'in training; within the trained length RoPE was ahead in a measured claim.'
        ),
        share='model',
        relative=True,
    ),
)
class ALiBiSymmetric(ALiBi):
    """ALiBi with the same penalty for earlier and later keys; acts on the logits.

    `logit_ij = q_i . k_j / sqrt(H) - m_h |i - j|`. It is `alibi(variant='symmetric')` under the
    name of the paper that found it better than learned and rotary positions on RNA; there it is the
    only positional signal of an encoder. It cannot tell left from right: a reversed sequence gives
    the reversed output. In a causal model it equals `alibi()`. Differs from the paper: nothing in
    the formula. Biases are computed from positions, whereas the paper's code keeps a table and
    rebuilds it for longer inputs.

    Args:
      slopes: m_h, one per head, in place of ALiBi's.
      heads: N, from the model.

    Reference: Ren et al., arXiv 2406.10391.

    Example:
      >>> import jax.numpy as jnp, posenc_jax as pj
      >>> pos = jnp.arange(3)[None]
      >>> pj.make('alibi_symmetric()', heads=8).bias(pos, pos)[0, 0].tolist()
      [[-0.0, -0.5, -1.0], [-0.5, -0.0, -0.5], [-1.0, -0.5, -0.0]]
    """

    def __init__(self, slopes: PerHead | None = None, heads: int = CONTEXT):
        super().__init__(slopes=slopes, variant='symmetric', heads=heads)
