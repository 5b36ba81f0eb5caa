"""TRA: queries attend to relevant keys only, and the distance counts relevant keys only."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.base.products import heads_first
from posenc_jax.methods.cope import suffix_sum
from posenc_jax.protocol.bounds import CONTEXT, NonNegative
from posenc_jax.protocol.capabilities import Carries
from posenc_jax.protocol.checks import layer_input
from posenc_jax.protocol.encoding import drawn_uniform
from posenc_jax.protocol.registry import Card, register

_EPSILON = 1e-6


def inverse_rms(a: Float[Array, '... H']) -> Float[Array, '...']:
    """`1 / sqrt(mean(a^2) + 1e-6)`, float32."""
    return jax.lax.rsqrt(jnp.mean(a.astype(jnp.float32) ** 2, axis=-1) + _EPSILON)


def tra_logits(
    s: Float[Array, 'B N T S'],
    delta: Float[Array, 'B N T'],
    seen: Bool[Array, '#B #N T S'],
    carry: Float[Array, 'B N T'],
    threshold: float = 0.0,
) -> tuple[Float[Array, 'B N T S'], Float[Array, 'B N T']]:
    """`s_ij + delta_i count_ij` at the relevant keys of one block and -inf at the others.

    Args:
      s: scaled logits; keys in ascending order.
      delta: negative number added to the logit for each relevant key between query and key.
      seen: which keys each query sees.
      carry: number of relevant keys in the nearer blocks.
      threshold: a key is relevant where `s > threshold`.

    Returns:
      The logits, and the carry for the next farther block.

    Example:
      >>> s, seen = jnp.array([[[[1.0, -2.0, 3.0]]]]), jnp.ones((1, 1, 1, 3), bool)
      >>> logits, counted = tra_logits(s, jnp.full((1, 1, 1), -0.25), seen, jnp.ones((1, 1, 1)))
      >>> logits.ravel().tolist(), counted.ravel().tolist()
      ([0.25, -inf, 2.5], [3.0])
    """
    relevant = seen & (s > threshold)
    count = suffix_sum(relevant) + carry[..., None]
    kept = jnp.where(relevant, s + delta[..., None] * count, -jnp.inf)
    return kept, carry + relevant.sum(-1, dtype=jnp.float32)


@register(
    'tra',
    kind='encoding',
    card=Card(name='TRA', example='tra()', causal_only=True, relative=True, needs_training=True),
)
class TRA(Carries):
    """Removes keys with low logits and penalises the number of keys left between; acts on logits.

    `logit_ij = S_ij + delta_i #{t in j..i: S_it > threshold} if S_ij > threshold, else -inf`, `S_ij
    = q_i . k_j / sqrt(H)`, `delta_i = logsigmoid(x_i W_d + b_d)_h` with q, k of unit root mean
    square and x the layer input. Key j is relevant to query i where `S_ij > threshold`; the nearest
    one counts 1. A query without a relevant key gets zeros. Gradients pass through S at relevant
    keys and through delta. Differs from the paper: `threshold` can be above the paper's 0. Two
    details of the authors' notebook belong to the model and are not here: dropout of logits, and a
    residual stream that carries the normed activations.

    Keys that a mask hides are not counted. In a chain, the threshold applies to logits with the
    biases of earlier parts; biases of later parts act on relevant keys alone.

    Args:
      threshold: a key is relevant strictly above it.
      heads, model_dim: from the model.

    Raises:
      ValueError: the layer input of a query is missing.

    Reference: Opper, Fernandez, Smolensky, Gao, arXiv 2503.23174.
    """

    def __init__(
        self,
        threshold: NonNegative = 0.0,
        heads: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.threshold = threshold
        bound = model_dim**-0.5  # the default of a linear layer in the released code
        self.kernel = drawn_uniform(rngs, (model_dim, heads), bound, ('width', 'heads'))
        self.bias = drawn_uniform(rngs, (heads,), bound, ('heads',))

    def project(self, q, k, v, tq, tk, x=None):
        x = layer_input('tra', x, q.shape[1], 'query').astype(jnp.float32)
        a = jnp.einsum('btd,dn->btn', x, self.kernel[...], precision='highest') + self.bias[...]
        # Logits are normalised instead of q and k. Rounding the normalised vectors to bfloat16
        # would change the sign of some logits, and the sign decides which keys are relevant.
        tq = tq.with_feats(tra={'delta': jax.nn.log_sigmoid(a), 'norm': inverse_rms(q)})
        return q, k, v, tq, tk.with_feats(tra={'norm': inverse_rms(k)})

    def logits(self, s, q, k, tq, tk, seen, carry):
        of_query, of_key = (heads_first(tok.feats['tra']['norm']) for tok in (tq, tk))
        of_key = jnp.repeat(of_key, s.shape[1] // of_key.shape[1], axis=1)
        s = s * of_query[..., None] * of_key[..., None, :]
        return tra_logits(s, heads_first(tq.feats['tra']['delta']), seen, carry, self.threshold)
