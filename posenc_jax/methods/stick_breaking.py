"""Stick-breaking attention: each key takes a share of what the nearer keys leave."""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from posenc_jax.attention.kernels.program import in_kernel
from posenc_jax.base.derivatives import own_gradient
from posenc_jax.methods.cope import prefix_sum, suffix_sum
from posenc_jax.protocol.bounds import Lt
from posenc_jax.protocol.capabilities import Carries, Prunes
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register


def stick_breaking_logits(
    z: Float[Array, 'B N T S'], seen: Bool[Array, '#B #N T S'], carry: Float[Array, 'B N T']
) -> tuple[Float[Array, 'B N T S'], Float[Array, 'B N T']]:
    """The logarithms of the weights of one block of keys, float32.

    `ln A_ij = z_ij - sum_{l>=j} softplus(z_il)`, over the keys that are seen. The share of a key is
    `sigmoid(z)`, and it leaves `sigmoid(-z) = exp(-softplus(z))` to farther keys.

    Args:
      z: the logits of the shares, keys ascending in index.
      seen: which keys take a share. The logarithm of another key has no meaning.
      carry: minus the logarithm of what the nearer blocks leave.

    Returns:
      The logarithms, and the carry for the next farther block.

    Example:
      >>> log, left = stick_breaking_logits(
      ...     jnp.zeros((1, 1, 1, 3)), jnp.ones((1, 1, 1, 3), bool), jnp.zeros((1, 1, 1))
      ... )
      >>> jnp.exp(log[0, 0, 0]).tolist(), jnp.exp(-left).item()
      ([0.125, 0.25, 0.5], 0.125)
    """
    return (_logits if in_kernel() else _with_gradient)(z, seen, carry)


def _logits(z, seen, carry):
    broken = jnp.where(seen, jax.nn.softplus(z), 0.0)
    return z - suffix_sum(broken) - carry[..., None], carry + broken.sum(-1)


def _logits_bwd(operands, g):
    """A CPU takes a tenth less time for a tile than with what JAX derives (measured)."""
    (z, seen), (g, g_carry) = operands, g
    share = jnp.where(seen, jax.nn.sigmoid(z), 0.0)
    d_z = g + share * (g_carry[..., None] - prefix_sum(g))
    return d_z, None, g_carry - g.sum(-1)


_with_gradient = own_gradient(_logits)
_with_gradient.defvjp(lambda z, seen, carry: (_logits(z, seen, carry), (z, seen)), _logits_bwd)


@register(
    'stick_breaking',
    kind='encoding',
    card=Card(name='stick-breaking', example='stick_breaking()', causal_only=True, relative=True),
)
class StickBreaking(Carries):
    """Weighs the keys by breaking a stick from the query back; acts on the logits and the result.

    `out_i = sum_j A_ij v_j + rest_i v_i`, `A_ij = sigmoid(z_ij) prod_{j<l<i} (1 - sigmoid(z_il))`,
    `rest_i = 1 - sum_j A_ij`, `z_ij = q_i . k_j / sqrt(H)`, keys j < i. There is no softmax and no
    position: the order of the keys is in the products. A key that a mask hides takes nothing and
    breaks nothing, so the products of a document stay within it. The first token of a document sees
    no key and keeps its own value. Differs from the paper: nothing; `ln A` is computed from near to
    far as the logits of an ordinary softmax, whose log-sum-exp is then the logarithm of the sum of
    the weights. The group norm of the results of the heads, which larger models of the authors
    have, is `model.head_norm=True` with `model.norm='layernorm'`.

    Args:
      attend_current: whether a query sees its own key too, keys j <= i.
      remainder: what becomes of `rest_i`: 'self' gives it to the value of the query's own token, as
        the models of the authors do, and 'drop' to none.
      prune: leaves out blocks of keys that have less than this share of every query of a tile left
        to them, as a natural logarithm such as -10; None leaves out none.

    Raises:
      ValueError: `remainder='self'` where the queries are not the tokens of the values.

    Reference: Tan, Shen, Yang, Courville, Panda, arXiv 2410.17980.
    """

    traits = frozenset({'forms_weights'})

    def __init__(
        self,
        attend_current: bool = False,
        remainder: Literal['self', 'drop'] = 'self',
        prune: Annotated[float, Lt(0)] | None = None,
    ):
        self.most = jnp.inf if prune is None else -prune

    def project(self, q, k, v, tq, tk, x=None):
        if q.shape[1] != v.shape[1]:
            raise ValueError(
                "stick_breaking(remainder='self') gives the rest to the value of the query's own "
                f"token: {q.shape[1]} queries, {v.shape[1]} values; remainder='drop' needs none"
            )
        return q, k, v, tq.with_feats(stick_breaking=v), tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        return stick_breaking_logits(s, seen, carry)

    def mask(self, tq, tk):
        return (tk.index[:, None, :] < tq.index[:, :, None])[:, None]

    def may_see(self, tq, tk):
        return tk.index_low < tq.index_high

    def rescale(self, out, lse, tq):
        own = jnp.repeat(
            tq.feats['stick_breaking'], out.shape[2] // tq.feats['stick_breaking'].shape[2], axis=2
        )
        kept = out * jnp.exp(lse)[..., None] - own * jnp.expm1(lse)[..., None]
        return kept.astype(out.dtype)


class WithCurrent(StickBreaking, where=lambda given: given['attend_current']):
    """Stick-breaking attention in which a query sees its own key."""

    mask: Any = Encoding.mask
    may_see: Any = Encoding.may_see


class WithoutRemainder(StickBreaking, where=lambda given: given['remainder'] == 'drop'):
    """Stick-breaking attention whose weights sum to less than one."""

    project: Any = Encoding.project

    def rescale(self, out, lse, tq):
        return (out * jnp.exp(lse)[..., None]).astype(out.dtype)


class PruningSticks(StickBreaking, Prunes, where=lambda given: given['prune'] is not None):
    """Stick-breaking attention that leaves out blocks of keys to which almost nothing is left."""

    def ended(self, carry, tq):
        return carry > self.most
