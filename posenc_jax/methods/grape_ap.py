"""GRAPE-AP: additive GRAPE whose bias is a sum along the path from key to query."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.base.products import heads_first
from posenc_jax.methods.cope import suffix_sum
from posenc_jax.methods.rope import rotate
from posenc_jax.protocol.bounds import CONTEXT, Ge, Multiple
from posenc_jax.protocol.capabilities import Carries
from posenc_jax.protocol.encoding import Constant, drawn_normal
from posenc_jax.protocol.families import alibi_slopes, check_heads
from posenc_jax.protocol.registry import Card, register

_EPS = float(np.finfo(np.float32).eps)  # of the mean square, as in the released code


def grape_ap_turn(p: Float[Array, 'B L N P'], pos: Num[Array, '#B L']) -> Float[Array, 'B L N P']:
    """`R_l p_l`: every plane (t, t + P/2) turned by the position in radians."""
    return rotate(p, phase(pos, np.ones(p.shape[-1] // 2))[:, :, None])


def grape_ap_unit(p: Float[Array, '... P']) -> Float[Array, '... P']:
    """`p / rms(p)`; 0 where p is 0."""
    return p * jax.lax.rsqrt(jnp.mean(p**2, axis=-1, keepdims=True) + _EPS)


def grape_ap_bias(
    p: Float[Array, 'B N T P'],
    turned: Float[Array, 'B N S P'],
    slopes: Float[Array, 'N'],
    counted: Bool[Array, '#B T S'],
    carry: Float[Array, 'B N T'],
) -> tuple[Float[Array, 'B N T S'], Float[Array, 'B N T']]:
    """The bias of one block of keys, and the sum for the next farther block.

    The bias is `sum_{j<l<=i} psi_il`, `psi_il = m_h log sigmoid(p_i . turned_l / P)`. It is summed
    from the query to the key, so that near keys lose no digits, however long the text is.

    Args:
      p: of the queries, neither turned nor of unit size.
      turned: of the keys, ascending in index, see `grape_ap_turn` and `grape_ap_unit`.
      slopes: m_h.
      counted: which keys count for each query: those up to it that are no padding. For keys after
        the query the bias has no meaning.
      carry: sum over the nearer blocks.

    Example:
      >>> zero, counted = jnp.zeros((1, 1, 2, 2)), jnp.array([[[True, False], [True, True]]])
      >>> bias, carry = grape_ap_bias(zero, zero, jnp.ones(1), counted, jnp.zeros((1, 1, 2)))
      >>> bias[0, 0].round(4).tolist(), carry.round(4).tolist()
      ([[0.0, 0.0], [-0.6931, 0.0]], [[[-0.6931, -1.3863]]])
    """
    along = jnp.einsum('bntp,bnsp->bnts', p, turned, precision='highest') / p.shape[-1]
    psi = slopes[:, None, None] * jax.nn.log_sigmoid(along)
    psi = jnp.where(counted[:, None], psi, 0.0)
    sums = suffix_sum(psi)  # with the key itself, which does not count
    return carry[..., None] + (sums - psi), carry + sums[..., 0]


@register(
    'grape_ap',
    kind='encoding',
    card=Card(name='GRAPE-AP', example='grape_ap(size=4)', causal_only=True, needs_training=True),
)
class GrapeAP(Carries):
    """Adds to a logit what every token between key and query contributes, as the query sees it.

    `logit_ij = q_i . k_j / sqrt(H) + sum_{j<l<=i} psi_il`, `psi_il = m_h log sigmoid(p_i . R_l
    unit(p_l) / P)`, `p = W x`, P numbers for each head, x the layer input, `unit(p) = p / rms(p)`,
    R_l turns every pair of features by l radians, m_h the slopes of ALiBi. No bias is positive, and
    none rises with the distance. With `W = 0` it is ALiBi whose slopes are multiplied by ln 2.
    Padding adds nothing, and the sum starts again in each document.

    The key's side is turned by its position l and the query's side is not. So results change if all
    positions are shifted. `relative=True` turns p_i by i too, so that `R_(l - i)` counts.

    Differs from the paper: nothing by default. `relative` is ours. The released code turns by -l;
    with the signs of the second half of the rows of W changed, this is the same. It subtracts sums
    over the whole row, which loses digits; here the sum runs from the query to the key.

    The keys that a query sees must be contiguous and end at the query (causal, document, window),
    because tokens of blocks that a mask rules out are not counted.

    Args:
      size: P, the numbers for each head.
      relative: whether the query's side is turned too.
      heads, model_dim: N and D, from the model.
      rngs: draws W, normal with standard deviation `1 / (2 sqrt(D))`.

    Raises:
      ValueError: at call, the layer input of a token is missing, or positions have components.

    Reference: Zhang, Chen, Liu, Qin, Yuan, Xu, Yuan, Gu, Yao, arXiv 2512.07805.
    """

    traits = frozenset({'sums_between'})

    def __init__(
        self,
        size: Annotated[int, Ge(2), Multiple(2)] = 8,
        relative: bool = False,
        heads: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.relative = relative
        std, axes = 0.5 * model_dim**-0.5, ('width', 'heads', None)
        self.kernel = drawn_normal(rngs, (model_dim, heads, size), std, axes)
        self.slopes = Constant(jnp.asarray(alibi_slopes(heads), jnp.float32), axes=('heads',))

    def project(self, q, k, v, tq, tk, x=None):
        if x is None or not x.shape[1] == k.shape[1] == q.shape[1]:
            got = 'none' if x is None else f'{x.shape[1]} tokens'
            raise ValueError(
                'grape_ap reads the layer input of one token per query and key: '
                f'{q.shape[1]} queries, {k.shape[1]} keys, input: {got}'
            )
        if tk.pos.ndim != 2:
            raise ValueError(
                f'grape_ap takes one position per token, got positions of shape {tk.pos.shape}'
            )
        x = x.astype(jnp.float32)
        p = jnp.einsum('bsd,dnp->bsnp', x, self.kernel[...], precision='highest')
        own = grape_ap_turn(p, tq.pos) if self.relative else p
        turned = grape_ap_turn(grape_ap_unit(p), tk.pos)
        return q, k, v, tq.with_feats(grape_ap=own), tk.with_feats(grape_ap=turned)

    def logits(self, s, q, k, tq, tk, seen, carry):
        check_heads('grape_ap', self.slopes[...], s)
        counted = tk.index[..., None, :] <= tq.index[..., :, None]
        if tk.valid is not None:
            counted = counted & tk.valid[..., None, :]
        p, turned = heads_first(tq.feats['grape_ap']), heads_first(tk.feats['grape_ap'])
        bias, carry = grape_ap_bias(p, turned, self.slopes[...], counted, carry)
        return s + bias, carry
