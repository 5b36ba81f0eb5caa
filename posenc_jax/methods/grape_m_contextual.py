"""Contextual multiplicative GRAPE: positions that are sums over the tokens before."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.base.double import Double
from posenc_jax.base.phases import TWO_PI
from posenc_jax.base.products import heads_first, scaled_dot_product
from posenc_jax.methods.grape_m import grape_m_frequencies
from posenc_jax.methods.rope import rope_frequencies, rotate
from posenc_jax.protocol.bounds import CONTEXT, Base
from posenc_jax.protocol.capabilities import Carries
from posenc_jax.protocol.checks import layer_input
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, register

Gate = Literal['sigmoid', 'softplus']
GATES = ('sigmoid', 'softplus')
_FIRST_BIAS = float(np.log(np.expm1(1e-3)))  # softplus gives 0.001 there
_FLAT = 16.0  # divides what the sigmoid reads
_GRID = 4096.0  # steps of the coarse part of an increment in one unit


def grape_m_contextual_increments(
    a: Float[Array, '...'], gate: Gate = 'sigmoid'
) -> Float[Array, '...']:
    """What one token adds to the position: `sigmoid(a / 16)`, or `softplus(a)`; float32."""
    a = a.astype(jnp.float32)
    if check_choice('gate', gate, GATES) == 'softplus':
        return jax.nn.softplus(a)
    return jax.nn.sigmoid(a / _FLAT)


def grape_angles(position: Double, theta: Float[Array, 'F']) -> Float[Array, '... F']:
    """`position theta` without its whole turns, in [-pi, pi], float32.

    The product has 48 bits. In float32 it would be off by 2e-3 rad at a position of 40,000.
    """
    # Triton has no bits of a constant, but those of an array that is full of it.
    full = jax.tree.map(lambda part: jnp.full_like(theta, part), Double.of(1.0 / TWO_PI))
    turns = position[..., None] * (Double.of(theta) * full)
    return ((turns.high - jnp.round(turns.high)) + turns.low) * np.float32(TWO_PI)


def grape_m_contextual_match(
    q: Float[Array, 'B N T H'],
    k: Float[Array, 'B K S H'],
    omega: Float[Array, '#B heads S'],
    theta: Float[Array, 'F'],
    q_index: Int[Array, '#B T'],
    k_index: Int[Array, '#B S'],
    carry: Double,
) -> tuple[Float[Array, 'B N T S'], Double]:
    """Logits of one block of keys, and the sum from its start to each query for the next block.

    The sum has 48 bits, so that its error and that of the angles do not grow with the number of
    blocks.

    Args:
      q, k: as projected, not rotated.
      omega: increments of the keys, of every key head or of all together, ascending in index; 0 at
        keys that are not valid.
      theta: radians per unit of a position.
      q_index, k_index: order of the tokens. Logits of keys after the query have no meaning.
      carry: sum [B, N, T] from the end of this block to each query.

    Example:
      >>> q, k, index = jnp.ones((1, 1, 1, 2)), jnp.ones((1, 1, 2, 2)), jnp.array([[0, 1]])
      >>> omega, zero = jnp.array([[[0.5, 0.25]]]), Double.of(jnp.zeros((1, 1, 1)))
      >>> s, carry = grape_m_contextual_match(q, k, omega, jnp.ones(1), index[:, 1:], index, zero)
      >>> s.ravel().round(4).tolist(), carry.high.ravel().tolist()
      ([1.2411, 1.4142], [0.5])
    """
    before = (k_index[..., :, None] < q_index[..., None, :]).astype(jnp.float32)

    def summed(parts):
        sums = jnp.einsum('bns,bst->bnt', parts, before, precision='highest')
        # One of every key head goes to all its query heads.
        return sums if omega.shape[1] == 1 else jnp.repeat(sums, q.shape[1] // k.shape[1], axis=1)

    coarse = jnp.round(omega * _GRID) / _GRID  # their sums up to 4096 are not rounded
    total = carry + summed(coarse) + summed(omega - coarse)
    own = jnp.cumsum(omega, axis=-1) - omega
    turned = rotate(q, grape_angles(total, theta)), rotate(k, own[..., None] * theta)
    return scaled_dot_product(*turned), total


@register(
    'grape_m_contextual',
    kind='encoding',
    card=Card(
        name='GRAPE-M (contextual)',
        example='grape_m_contextual()',
        use_when=(
            'You train a rotary model in which each token decides how far it moves the '
            'positions behind it.'
        ),
        causal_only=True,
        relative=True,
        needs_training=True,
    ),
)
class ContextualGrapeM(Carries):
    """Rotates queries and keys to positions to which every token adds an amount of its own.

    `logit_ij = R(P_i theta) q_i . R(P_j theta) k_j / sqrt(H)`, `P_i = sum_{l<i} omega_l`, `omega_l
    = sigmoid((w . x_l + c) / 16)`, x the layer input. The frequencies `theta_t = exp(log_freq_t)`
    are trained and start as those of RoPE. A logit depends on `P_i - P_j`, the sum from the key up
    to the token before the query. Positions of tokens are not read. Padding adds nothing, and the
    sum starts again in each document.

    At the start `w = 0` and `c = ln(e^0.001 - 1)`, so `omega = 0.394`: RoPE whose positions are
    divided by 2.54.

    Differs from the paper: its increments are a softplus, which `gate='softplus'` gives, and start
    at 0.001; the released code has had both. The sum between key and query is formed block by
    block, so a cache holds one increment per token beside keys that are not turned.

    The keys that a query sees must be contiguous and end at the query (causal, document, window),
    because tokens of blocks that a mask rules out are not counted.

    Args:
      base: of the frequencies at the start.
      gate: 'sigmoid' or 'softplus', what makes an increment.
      per_head: every key head has increments of its own; otherwise all heads share them.
      kv_heads, head_dim, model_dim: from the model.

    Raises:
      ValueError: an odd head width; at call, the layer input of a key is missing.

    Reference: Zhang, Chen, Liu, Qin, Yuan, Xu, Yuan, Gu, Yao, arXiv 2512.07805.
    """

    traits = frozenset({'rotates', 'sums_between', 'forms_logits'})

    def __init__(
        self,
        base: Base = 10000.0,
        gate: Gate = 'sigmoid',
        per_head: bool = False,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
    ):
        self.gate: Gate = gate
        start = np.log(rope_frequencies(head_dim, base))
        self.log_freq = nnx.Param(jnp.asarray(start, jnp.float32), axes=(None,))
        count, role = (kv_heads, 'kv_heads') if per_head else (1, None)
        self.kernel = nnx.Param(jnp.zeros((model_dim, count), jnp.float32), axes=('width', role))
        self.bias = nnx.Param(jnp.full(count, _FIRST_BIAS, jnp.float32), axes=(role,))

    def project(self, q, k, v, tq, tk, x=None):
        x = layer_input('grape_m_contextual', x, k.shape[1])
        a = jnp.einsum('bsd,dn->bsn', x.astype(jnp.float32), self.kernel[...], precision='highest')
        omega = grape_m_contextual_increments(a + self.bias[...], self.gate)
        if tk.valid is not None:
            omega = jnp.where(tk.valid[..., None], omega, 0.0)
        return q, k, v, tq, tk.with_feats(grape_m_contextual=omega)

    def first_carry(self, q, tq):
        return Double.of(jnp.zeros(q.shape[:3], jnp.float32))

    def logits(self, s, q, k, tq, tk, seen, carry):
        omega = heads_first(tk.feats['grape_m_contextual'])
        theta = grape_m_frequencies(self.log_freq[...], 1.0)
        return grape_m_contextual_match(q, k, omega, theta, tq.index, tk.index, carry)
