"""CARoPE: rotary phases summed from increments that depend on the tokens and on the head."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import TWO_PI
from posenc_jax.base.products import heads_first, scaled_dot_product
from posenc_jax.methods.rope import Layout, rope_frequencies, rotate
from posenc_jax.protocol.bounds import CONTEXT, Base
from posenc_jax.protocol.capabilities import Carries
from posenc_jax.protocol.checks import layer_input
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens


def carope_log_rate(a: Float[Array, '...']) -> Float[Array, '...']:
    """`ln f = -ln(1 + softplus(a))` in float32, so that f is in (0, 1)."""
    return -jnp.log1p(jax.nn.softplus(a.astype(jnp.float32)))


def carope_start(head_dim: int, base: float) -> float:
    """The c for which `f = 1 / (1 + softplus(c))` is `base^(-2 / head_dim)`.

    The powers of f are then RoPE's frequencies.

    Raises:
      ValueError: a base that is not above 1.
    """
    if not base > 1:
        raise ValueError(
            'carope starts from RoPE with f = base^(-2/H) in (0, 1): base must be above 1, got '
            f'{base}'
        )
    aim = float(np.expm1(2.0 / head_dim * np.log(base)))
    return aim + float(np.log(-np.expm1(-aim)))


def carope_increments(log_f: Float[Array, '...'], planes: int) -> Float[Array, '... F']:
    """The increment `f^t` that one token adds to the phase of plane t = 0 .. planes - 1."""
    return jnp.exp(log_f[..., None] * np.arange(planes, dtype=np.float32))


def carope_last(tq: Tokens, tk: Tokens) -> Float[Array, '#B S T']:
    """1 at the last valid key of the block that is not after the query, 0 elsewhere."""
    until = tk.index[..., :, None] <= tq.index[..., None, :]
    if tk.valid is not None:
        until = until & tk.valid[..., None]
    others = jax.lax.cumsum(until.astype(jnp.int32), axis=1, reverse=True)
    return (until & (others == 1)).astype(jnp.float32)


def carope_match(
    q: Float[Array, 'B N T H'],
    k: Float[Array, 'B K S H'],
    increments: Float[Array, '#B N S F'],
    last: Num[Array, '#B S T'],
    carry: Float[Array, 'B N T F'],
    *,
    layout: Layout = 'half',
) -> tuple[Float[Array, 'B N T S'], Float[Array, 'B N T F']]:
    """Logits of one block of keys, and the phase from its start to each query for the next block.

    Args:
      q, k: as projected, not rotated.
      increments: phase increments of the keys, radians, ascending in index; 0 at keys that are not
        valid.
      last: 1 at the last key of this block up to the query, 0 elsewhere; see `carope_last`. Logits
        of keys after the query are finite but have no meaning.
      carry: phase from the end of this block to each query, modulo a turn.
      layout: planes of features, see `rotate`.

    Example:
      >>> q, k, last = jnp.ones((1, 1, 1, 2)), jnp.ones((1, 1, 2, 2)), jnp.array([[[0.0], [1.0]]])
      >>> s, carry = carope_match(q, k, jnp.full((1, 1, 2, 1), 0.5), last, jnp.zeros((1, 1, 1, 1)))
      >>> s.ravel().round(4).tolist(), carry.ravel().tolist()
      ([1.2411, 1.4142], [1.0])
    """
    (batch, heads, _, width), kv_heads = q.shape, k.shape[1]
    angles = jnp.cumsum(increments, axis=2)
    carry = carry + jnp.einsum('bnsf,bst->bntf', angles, last, precision='highest')
    angles = angles.reshape(angles.shape[0], kv_heads, heads // kv_heads, *angles.shape[2:])
    turned = rotate(k[:, :, None], angles, layout=layout).reshape(batch, heads, -1, width)
    return scaled_dot_product(rotate(q, carry, layout=layout), turned), _within_a_turn(carry)


def _within_a_turn(angle):
    """Subtracts whole turns, with 2 pi in two parts so that the carry loses no digits.

    The product with the first part is exact.
    """
    turns = jnp.round(angle / TWO_PI)
    return angle - turns * 6.28125 - turns * (TWO_PI - 6.28125)


@register(
    'carope',
    kind='encoding',
    card=Card(
        name='CARoPE',
        example='carope()',
        use_when=(
            'You train a rotary model whose angles should follow the content; it is '
            'slower than RoPE, and a measured claim about its speed is contrary.'
        ),
        causal_only=True,
        relative=True,
        needs_training=True,
    ),
)
class CARoPE(Carries):
    """Rotates queries and keys of each head by sums of token-dependent phase increments.

    `logit_ij = R(phi(i)) q_i . R(phi(j)) k_j / sqrt(H)`, `phi_t(m) = sum_{s<=m} f(x_s)^t`, `f(x)_h
    = 1 / (1 + softplus(x W + c)_h)`, plane t = 0 .. H/2 - 1, x the layer input. A logit depends on
    the tokens between key and query, through `phi(i) - phi(j) = sum_{j<s<=i} f(x_s)^t`. Positions
    are not read. Padding adds nothing, and the sum starts again in each document.

    Differs from the paper: the bias c, with which the layer starts as RoPE; without it f = 0.59 at
    W = 0. The phase between key and query is summed block by block, so the cache holds unrotated
    keys and one number `ln f` per token and head in place of a running phase. The paper does not
    treat key heads that several query heads share. Here every query head rotates the shared key by
    its own phases, so the logits of every head stay relative. Rotating the key once, by the phases
    of the first query head of the group, would break this for the other heads.

    The keys that a query sees must be contiguous and end at the query (causal, document, window),
    because tokens of blocks that a mask rules out are not counted.

    Args:
      base: base of the RoPE that the layer starts from; not used without bias.
      bias: False is the paper's literal f.
      layout: 'half' or 'interleaved', see `rotate`.
      heads, head_dim, model_dim: from the model.

    Raises:
      ValueError: an odd head width, a base of 1; the layer input of a key is missing.

    Reference: Veisi, Fartoot, Amirzadeh, arXiv 2507.23083.
    """

    traits = frozenset({'rotates', 'sums_between', 'forms_logits'})

    def __init__(
        self,
        base: Base = 10000.0,
        bias: bool = True,
        layout: Layout = 'half',
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
    ):
        self.layout = layout
        self.planes = len(rope_frequencies(head_dim, base))
        self.kernel = nnx.Param(jnp.zeros((model_dim, heads), jnp.float32), axes=('width', 'heads'))
        first = carope_start(head_dim, base) * jnp.ones(heads, jnp.float32) if bias else None
        self.bias = nnx.Param(first, axes=('heads',)) if bias else None

    def project(self, q, k, v, tq, tk, x=None):
        x = layer_input('carope', x, k.shape[1])
        a = jnp.einsum('bsd,dn->bsn', x.astype(jnp.float32), self.kernel[...], precision='highest')
        log_rate = carope_log_rate(a if self.bias is None else a + self.bias[...])
        return q, k, v, tq, tk.with_feats(carope=log_rate)

    def first_carry(self, q, tq):
        return jnp.zeros((*q.shape[:3], self.planes), jnp.float32)

    def logits(self, s, q, k, tq, tk, seen, carry):
        increments = carope_increments(heads_first(tk.feats['carope']), self.planes)
        if tk.valid is not None:
            increments = jnp.where(tk.valid[:, None, :, None], increments, 0.0)
        return carope_match(q, k, increments, carope_last(tq, tk), carry, layout=self.layout)
