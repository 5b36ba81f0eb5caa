"""BAM: a generalised Gaussian prior over the distance, trained per head."""

from typing import Annotated

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.methods.alibi import alibi_slopes
from posenc_jax.protocol.bounds import CONTEXT, Entries, Finite, PerHead
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.families import Bias, check_heads, signed_distance
from posenc_jax.protocol.registry import Card, register

PARAMETERS = ('beta', 'logscale', 'loc')
_EPSILON = 1e-5  # as in the official code: a power of 0 or its gradient may not be finite


def bam_prior(
    beta: Float[Array, 'N'],
    logscale: Float[Array, 'N'],
    loc: Float[Array, 'N'],
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
) -> Float[Array, '#B N T S']:
    """`-exp(logscale) (|(j - i) - mu| + 1e-5)^beta`, `mu = exp(loc) - exp(-loc)`, float32."""
    per_head = lambda a: a.astype(jnp.float32)[:, None, None]
    mu = per_head(jnp.exp(loc) - jnp.exp(-loc))
    ahead = -signed_distance(q_pos, k_pos).astype(jnp.float32)[:, None]
    # exp and log are vectorised and a power of arrays is not. This form takes a seventh of the
    # time, gradients included.
    return -jnp.exp(per_head(logscale) + per_head(beta) * jnp.log(jnp.abs(ahead - mu) + _EPSILON))


@register(
    'bam',
    kind='encoding',
    card=Card(name='BAM', example='bam()', share='model', relative=True, needs_training=True),
)
class BAM(Bias):
    """Adds a generalised Gaussian prior over the distance to the logits, trained per head.

    `logit_ij = q_i . k_j / sqrt(H) - exp(logscale_h) (|(j - i) - mu_h| + 1e-5)^beta_h`, `mu =
    exp(loc) - exp(-loc)`. The initial prior is ALiBi (up to 1e-5 m_h). beta = 0 is no bias; with
    beta < 0 a head attends less to keys near mu. loc < 0 puts the peak in the past, loc > 0 in the
    future. All layers share one prior.

    The paper trains it together with scalable softmax, which here is a second part of the chain
    with a gain per layer. `bam() | ssmax()` multiplies logits and prior; `ssmax() | bam()`
    multiplies the logits alone, as some commits of the official code do. Differs from the paper:
    the scale stands outside the power and is trained as a logarithm, where the paper writes
    `(|.| / alpha)^beta`; both forms occur in commits of the official code.

    Args:
      beta: initial exponent of all heads, or one each.
      scale: initial exp(logscale), one per head, in place of ALiBi's slopes.
      loc: initial loc of all heads, or one each.
      fixed: names of the parameters that are not trained, from 'beta', 'logscale', 'loc'.
      heads: N, from the model.

    Raises:
      ValueError: when used, queries of another number of heads.

    Reference: Bianchessi, Aguirre, Barros, Kupssinsku, arXiv 2505.22842.

    Example:
      >>> import posenc_jax as pj
      >>> prior = pj.make('bam(beta=(0.0, 0.25, 0.5, 1.0))', heads=4)
      >>> jnp.exp(prior.logscale[...])[:2].round(4).tolist(), prior.beta[1].item()
      ([0.25, 0.0625], 0.25)
    """

    def __init__(
        self,
        beta: Finite | Annotated[tuple[Finite, ...], Entries('heads')] = 1.0,
        scale: PerHead | None = None,
        loc: Finite | Annotated[tuple[Finite, ...], Entries('heads')] = 0.0,
        fixed: tuple[str, ...] = (),
        heads: int = CONTEXT,
    ):
        scale = alibi_slopes(heads) if scale is None else np.asarray(scale, np.float64)
        for name in fixed:
            check_choice('a fixed parameter of bam', name, PARAMETERS)
        for name, values in zip(PARAMETERS, (beta, np.log(scale), loc)):
            kind = Constant if name in fixed else nnx.Param
            per_head = jnp.broadcast_to(jnp.asarray(values, jnp.float32), (heads,))
            setattr(self, name, kind(per_head, axes=('heads',)))

    def bias(self, q_pos, k_pos):
        return bam_prior(self.beta[...], self.logscale[...], self.loc[...], q_pos, k_pos)

    def logits(self, s, q, k, tq, tk, seen, carry):
        check_heads('bam', self.beta[...], s)
        return super().logits(s, q, k, tq, tk, seen, carry)
