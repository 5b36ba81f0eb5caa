"""Additive GRAPE: linear biases whose slopes follow the contents of keys and queries."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.derivatives import own_gradient
from posenc_jax.base.products import heads_first
from posenc_jax.protocol.bounds import CONTEXT
from posenc_jax.protocol.encoding import Constant, Encoding, drawn_normal
from posenc_jax.protocol.families import alibi_slopes, signed_distance
from posenc_jax.protocol.registry import Card, register

Gate = Literal['key', 'query', 'both']
_EPS = 1e-6  # of the length of a direction
_FIRST_OMEGA = float(np.log(np.e - 1.0))  # softplus gives 1 there


def grape_a_gate(
    x: Float[Array, 'B L heads H'], direction: Float[Array, 'N H']
) -> Float[Array, 'B L N']:
    """`softplus(u_h . x / sqrt(H))` for each query head h, u_h of length 1; float32.

    Args:
      x: queries, or keys, of which each serves N // heads consecutive query heads.
      direction: u before it is divided by its length.
    """
    heads, width = direction.shape
    length = jnp.sqrt(jnp.sum(direction**2, axis=-1, keepdims=True) + _EPS**2)
    unit = (direction / length).reshape(x.shape[2], -1, width)
    along = jnp.einsum('blkh,kgh->blkg', x.astype(jnp.float32), unit, precision='highest')
    return jax.nn.softplus(along.reshape(*x.shape[:2], heads) * width**-0.5)


def grape_a_bias(
    slopes: Float[Array, 'N'],
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
    of_query: Float[Array, '#B N T'] | None,
    of_key: Float[Array, '#B N S'] | None,
) -> Float[Array, '#B N T S']:
    """`-w_h |p_i - p_j| (gate of the query + gate of the key)`, float32; None is no gate.

    Example:
      >>> pos, gate = jnp.array([[0, 1, 2]]), jnp.array([[[1.0, 3.0, 5.0]]])
      >>> grape_a_bias(jnp.array([0.5]), pos[:, 2:], pos, None, gate).tolist()
      [[[[-1.0, -1.5, -0.0]]]]
    """
    distance = jnp.abs(signed_distance(q_pos, k_pos)).astype(jnp.float32)
    sloped = lambda gate: None if gate is None else -slopes[:, None] * gate
    return _times_distance(distance, sloped(of_query), sloped(of_key))


@own_gradient
def _times_distance(distance, of_query, of_key):
    """`d_ij (a_i + b_j)`; None is no a or no b."""
    return distance[:, None] * _sums(of_query, of_key)


def _sums(of_query, of_key):
    sides = [] if of_query is None else [of_query[..., None]]
    return sum(sides + ([] if of_key is None else [of_key[..., None, :]]))


def _times_distance_bwd(operands, g):
    distance, of_query, of_key = operands
    # XLA sums over queries three times as fast if the products are an array of their own.
    products = jax.lax.optimization_barrier(g * distance[:, None])
    summed = lambda a, axis: None if a is None else _over_rows(products.sum(axis), len(a))
    d_distance = _over_rows((g * _sums(of_query, of_key)).sum(1), len(distance))
    return d_distance, summed(of_query, 3), summed(of_key, 2)


def _over_rows(a, rows: int):
    return a if len(a) == rows else a.sum(0, keepdims=True)


_times_distance.defvjp(
    lambda *operands: (_times_distance(*operands), operands), _times_distance_bwd
)


@register(
    'grape_a',
    kind='encoding',
    card=Card(
        name='GRAPE-A',
        example='grape_a()',
        use_when=(
            'You want a penalty of the distance, as in ALiBi, whose slope follows the content.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class GrapeA(Encoding):
    """Penalises distance by slopes that follow the content of the key, the query, or both.

    `logit_ij = q_i . k_j / sqrt(H) - w_h |i - j| g_j`, `w_h = softplus(omega_h) m_h`, `g_j =
    softplus(u_h . k_j / sqrt(H))`, m_h the slopes of ALiBi, omega and the unit vector u_h trained
    for each query head. With `gate='query'` the factor is `softplus(v_h . q_i / sqrt(H))`, with
    'both' it is the sum of the two. softplus(omega) is 1 at the start. Where the gates are
    constant, this is ALiBi; a gate is ln 2 where its key or query is zero. It reads queries and
    keys before they are turned. `grape_ap` is the form that sums along the path from key to query.

    Differs from the paper: which treats causal attention alone. Later keys, where they are seen,
    are penalised in the same way. Key heads that several query heads share have a gate for each
    query head.

    Args:
      gate: what the slopes follow: 'key', 'query' or 'both'.
      heads, head_dim: N and H, from the model.
      rngs: draws u and v.

    Raises:
      ValueError: at call, queries of other sizes.

    Reference: Zhang, Chen, Liu, Qin, Yuan, Xu, Yuan, Gu, Yao, arXiv 2512.07805.
    """

    traits = frozenset({'reads_unrotated'})

    def __init__(
        self,
        gate: Gate = 'key',
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        drawn = lambda: drawn_normal(rngs, (heads, head_dim), head_dim**-0.5, ('heads', None))
        self.of_key = None if gate == 'query' else drawn()
        self.of_query = None if gate == 'key' else drawn()
        self.omega = nnx.Param(jnp.full(heads, _FIRST_OMEGA, jnp.float32), axes=('heads',))
        self.slopes = Constant(jnp.asarray(alibi_slopes(heads), jnp.float32), axes=('heads',))

    def project(self, q, k, v, tq, tk, x=None):
        (directions,) = {own.shape for own in (self.of_key, self.of_query) if own is not None}
        if q.shape[2:] != directions:
            raise ValueError(
                f'grape_a was built for {directions[0]} heads of width {directions[1]}, the '
                f'queries have {q.shape[2]} of width {q.shape[3]}'
            )
        if self.of_query is not None:
            tq = tq.with_feats(grape_a=grape_a_gate(q, self.of_query[...]))
        if self.of_key is not None:
            tk = tk.with_feats(grape_a=grape_a_gate(k, self.of_key[...]))
        return q, k, v, tq, tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        slopes = jax.nn.softplus(self.omega[...]) * self.slopes[...]
        of_query = None if self.of_query is None else heads_first(tq.feats['grape_a'])
        of_key = None if self.of_key is None else heads_first(tk.feats['grape_a'])
        return s + grape_a_bias(slopes, tq.pos, tk.pos, of_query, of_key), carry
