"""CABLE: a cost per token and head, summed from key to query."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.attention.kernels.program import in_kernel
from posenc_jax.base.products import heads_first
from posenc_jax.methods.cope import prefix_sum, suffix_sum
from posenc_jax.protocol.bounds import CONTEXT, NonNegative, Positive
from posenc_jax.protocol.capabilities import Carries
from posenc_jax.protocol.checks import layer_input
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.registry import Card, register

# Up to this many keys the sums of several queries are a product with a triangular matrix. That of
# runs takes longer on CPU then (measured).
_WIDEST = 512


def cable_bias(
    costs: Float[Array, '#B N S'],
    q_index: Int[Array, '#B T'],
    k_index: Int[Array, '#B S'],
    carry: Float[Array, 'B N T'],
) -> tuple[Float[Array, 'B N T S'], Float[Array, 'B N T']]:
    """Minus the summed cost of the tokens after each key up to each query, for one block of keys.

    The result is float32. Sums start at the first query. So the cost between a query
    and a near key is a difference of small numbers, however long the sequence is. No sum contains
    a token that comes after its query or key.

    Args:
      costs: cost of each key, ascending in index; 0 at keys that are not valid.
      q_index, k_index: order of the tokens. For keys after the query the bias is finite but has no
        meaning.
      carry: summed cost of the nearer blocks up to each query.

    Returns:
      The bias, and the carry for the next farther block.

    Example:
      >>> costs, index = jnp.array([[[1.0, 2.0, 4.0]]]), jnp.array([[0, 1, 2]])
      >>> bias, carry = cable_bias(costs, index[:, 1:], index, jnp.zeros((1, 1, 2)))
      >>> bias[0, 0].tolist(), carry.tolist()
      ([[-2.0, 0.0, 4.0], [-6.0, -4.0, 0.0]], [[[3.0, 7.0]]])
    """
    queries, keys = q_index.shape[1], costs.shape[2]
    until = lambda index: (k_index[..., :, None] <= index[..., None, :]).astype(jnp.float32)
    first = until(q_index[:, :1])
    total = lambda those: jnp.einsum('bns,bst->bnt', costs, those, precision='highest')
    if queries == 1:  # all of its keys lie in front of it
        of_query, before = 0.0, total(first)
        of_key = -_behind(costs * first.swapaxes(1, 2))
    elif isinstance(keys, int) and keys <= _WIDEST:
        columns = until(q_index) - first, first, jnp.triu(jnp.ones((keys, keys))) - first
        if in_kernel():  # which neither joins nor cuts columns cheaply
            of_query, before, of_key = map(total, columns)
        else:
            sums = total(jnp.concatenate(columns, axis=2))
            of_query, before, of_key = jnp.split(sums, [queries, queries + 1], axis=2)
    else:  # a length may be symbolic
        of_query, before = total(until(q_index) - first), total(first)
        near = costs * first.swapaxes(1, 2)
        of_key = prefix_sum(costs - near) - _behind(near)
    of_query = carry + of_query
    return of_key[..., None, :] - of_query[..., None], of_query + before


def _behind(costs: Float[Array, 'B N S']) -> Float[Array, 'B N S']:
    """The summed costs of the keys after each key."""
    return suffix_sum(jnp.pad(costs, ((0, 0), (0, 0), (0, 1))))[..., 1:]


@register(
    'cable',
    kind='encoding',
    card=Card(
        name='CABLE', example='cable()', causal_only=True, relative=True, needs_training=True
    ),
)
class Cable(Carries):
    """Subtracts the summed costs of the tokens between key and query; acts on the logits.

    `logit_ij = q_i . k_j / sqrt(H) - sum_{j<u<=i} g_u`, `g_u = softplus(x_u W_b + b_b)` per head, x
    the layer input. Each token thus sets its own cost. With `W_b = 0` all tokens cost the same,
    which is ALiBi. Differs from the paper: nothing in the formulas (the released attention leaves
    `1 / sqrt(H)` out, which is `scale=1.0`). The paper caches running sums; here costs are summed
    block by block, so the cache holds one cost per token and head. Positions are not read. Padding
    costs nothing, and the sum starts again in each document.

    The keys that a query sees must be contiguous and end at the query (causal, document, window),
    because tokens of blocks that a mask rules out are not counted.

    Args:
      scale: multiplies `q . k`; None is 1 / sqrt(H).
      std: standard deviation of the initial W_b; b_b starts at 0, where a token costs ln 2.
      heads, head_dim, model_dim: from the model.

    Raises:
      ValueError: the layer input of a key is missing.

    Reference: Veisi, Amirzadeh, Mansourian, arXiv 2503.08067.
    """

    traits = frozenset({'sums_between'})

    def __init__(
        self,
        scale: Positive | None = None,
        std: NonNegative = 0.02,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.scaled_by = None if scale is None else scale * head_dim**0.5
        self.kernel = drawn_normal(rngs, (model_dim, heads), std, ('width', 'heads'))
        self.bias = nnx.Param(jnp.zeros(heads, jnp.float32), axes=('heads',))

    def project(self, q, k, v, tq, tk, x=None):
        x = layer_input('cable', x, k.shape[1])
        a = jnp.einsum('bsd,dn->bsn', x.astype(jnp.float32), self.kernel[...], precision='highest')
        costs = jax.nn.softplus(a + self.bias[...])
        if tk.valid is not None:
            costs = jnp.where(tk.valid[..., None], costs, 0.0)
        return q, k, v, tq, tk.with_feats(cable=costs)

    def logits(self, s, q, k, tq, tk, seen, carry):
        bias, carry = cable_bias(heads_first(tk.feats['cable']), tq.index, tk.index, carry)
        return (s if self.scaled_by is None else s * self.scaled_by) + bias, carry
