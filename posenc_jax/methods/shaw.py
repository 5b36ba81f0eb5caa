"""Relative position representations: a trained key and a trained value per clipped distance."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from posenc_jax.attention.buckets import sum_by_bucket, take_bucket, take_row
from posenc_jax.attention.kernels.program import in_kernel
from posenc_jax.base.derivatives import own_gradient
from posenc_jax.base.products import heads_first, scaled_dot_product, weighted_sum
from posenc_jax.protocol.bounds import CONTEXT, Count, NonNegative
from posenc_jax.protocol.encoding import Encoding, drawn_normal
from posenc_jax.protocol.families import all_beyond, whole_distance
from posenc_jax.protocol.registry import Card, register


def shaw_index(
    q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S'], max_distance: int
) -> Int[Array, '#B T S']:
    """`clip(j - i, -K, K) + K`, key minus query.

    Raises:
      ValueError: positions that are not integers.
    """
    distance = whole_distance('shaw', q_pos, k_pos)
    return jnp.clip(-distance, -max_distance, max_distance).astype(jnp.int32) + max_distance


@own_gradient
def take_by_index(
    t: Float[Array, 'B N T C'], index: Int[Array, '#B #T #S']
) -> Float[Array, 'B N T S']:
    """`out[s] = t[index[s]]` for every query; the transpose of `sum_by_index`."""
    if in_kernel():
        return take_bucket(t, index)
    one, every = index[0, 0, 0], (*t.shape[:3], index.shape[2])
    return jax.lax.cond(
        (index == one).all(),
        lambda: jnp.broadcast_to(jax.lax.dynamic_slice_in_dim(t, one, 1, 3), every),
        lambda: jnp.take_along_axis(t, jnp.broadcast_to(index[:, None], every), axis=3),
    )


@partial(own_gradient, nondiff_argnums=(2,))
def sum_by_index(
    w: Float[Array, 'B N T S'], index: Int[Array, '#B #T #S'], bins: int
) -> Float[Array, 'B N T C']:
    """Sums of weights over the keys with the same index, for every query; linear in `w`."""
    if in_kernel():
        return sum_by_bucket(w, index, bins)
    one, first = index[0, 0, 0], _first_of_run(index)
    runs = (index == jnp.clip(first[..., None] + jnp.arange(index.shape[2]), 0, bins - 1)).all()
    # All keys of a far tile have the same clipped distance; most tiles of a long sequence are like
    # that. In the other tiles positions mostly count up.
    return jax.lax.switch(
        jnp.where((index == one).all(), 0, jnp.where(runs, 1, 2)),
        (
            lambda: w.sum(-1, keepdims=True) * jax.nn.one_hot(one, bins),
            lambda: _run(w, index, first, bins),
            lambda: _binned(w, jax.nn.one_hot(index, bins)),
        ),
    )


def _first_of_run(index: Int[Array, '#B #T #S']) -> Int[Array, '#B T']:
    """The x with `index[s] = clip(x + s, 0, bins - 1)`, if there is one."""
    lowest = (index == 0).sum(-1, dtype=index.dtype)
    return jnp.where(lowest > 0, 1 - lowest, index[..., 0])


def _run(w, index, first, bins):
    """The sums where indices count up with the keys.

    All bins except the first and the last then have at most one key.
    """
    if bins == 1:
        return w.sum(-1, keepdims=True)
    outer = lambda c: jnp.where((index == c)[:, None], w, 0).sum(-1, keepdims=True)
    at = (jnp.arange(1, bins - 1) - first[..., None])[:, None]
    inside = jnp.take_along_axis(
        w, jnp.broadcast_to(at, (*w.shape[:3], bins - 2)), axis=3, mode='fill', fill_value=0
    )
    return jnp.concatenate([outer(0), jnp.where(at >= 0, inside, 0), outer(bins - 1)], axis=3)


def _binned(w, chosen):
    highest = jax.lax.Precision.HIGHEST
    if chosen.shape[0] == 1:  # positions shared by the batch: one product for all rows and heads
        return jnp.einsum('bnts,tsc->bntc', w, chosen[0], precision=highest)
    return jnp.einsum('bnts,btsc->bntc', w, chosen, precision=highest)


# Autodiff transposes a gather to a scatter, which is several times slower on a CPU than these
# products.
take_by_index.defvjp(
    lambda t, index: (take_by_index(t, index), (index, jnp.zeros((0, t.shape[3])))),
    lambda kept, g: (sum_by_index(g, kept[0], kept[1].shape[1]), None),
)
sum_by_index.defvjp(
    lambda w, index, bins: (sum_by_index(w, index, bins), (index, jnp.zeros((*w.shape, 0)))),
    lambda bins, kept, g: (jnp.broadcast_to(take_by_index(g, kept[0]), kept[1].shape[:-1]), None),
)


def shaw_terms(q: Float[Array, '*B H'], keys: Float[Array, 'C H']) -> Float[Array, '*B C']:
    """`q_i . aK_c / sqrt(H)` for every clipped distance c, float32: the terms of relative keys."""
    return jnp.einsum('...h,ch->...c', q.astype(jnp.float32), keys) * q.shape[-1] ** -0.5


def shaw_logits(
    q: Float[Array, 'B N T H'],
    k: Float[Array, 'B K S H'],
    keys: Float[Array, 'C H'],
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
) -> Float[Array, 'B N T S']:
    """`q_i . (k_j + aK_c) / sqrt(H)`, c the clipped distance, float32.

    Args:
      q, k: queries and keys, heads first.
      keys: aK, 2 K + 1 of them for distances -K .. K.
      q_pos, k_pos: their positions.

    Raises:
      ValueError: an even number of relative keys; positions that are not integers.

    Example:
      >>> q, k, pos = jnp.ones((1, 1, 1, 4)), jnp.ones((1, 1, 3, 4)), jnp.array([[0, 1, 2]])
      >>> keys = jnp.array([[-1.0], [0.0], [1.0]]) * jnp.ones(4)
      >>> shaw_logits(q, k, keys, pos[:, 1:2], pos).ravel().tolist()
      [0.0, 2.0, 4.0]
    """
    index = shaw_index(q_pos, k_pos, _reach('keys', keys))
    return scaled_dot_product(q, k) + take_by_index(shaw_terms(q, keys), index)


def shaw_values(
    w: Float[Array, 'B N T S'],
    values: Float[Array, 'C H'],
    q_pos: Num[Array, '#B #T'],
    k_pos: Num[Array, '#B #S'],
) -> Float[Array, 'B N T H']:
    """`sum_j p_ij aV_c`, float32: the term of relative values, c the clipped distance.

    Args:
      w: p, the weights.
      values: aV, 2 K + 1 of them for distances -K .. K.
      q_pos, k_pos: positions of queries and keys.

    Raises:
      ValueError: an even number of relative values; positions that are not integers.
    """
    index = shaw_index(q_pos, k_pos, _reach('values', values))
    if index.shape[1:] == (1, 1) != w.shape[2:]:  # a uniform tile of a kernel
        return w.sum(-1, keepdims=True) * take_row(values, index)
    bins = sum_by_index(w, index, len(values))
    # One copy of the values per row and head. The gradient is then a product per row and head,
    # which XLA computes many times as fast as one product over all.
    copies = jnp.broadcast_to(values, (*bins.shape[:2], *values.shape))
    return jnp.einsum('bntc,bnch->bnth', bins, copies)


def _reach(what, vectors):
    if len(vectors) % 2 == 0:
        raise ValueError(
            f'shaw: relative {what} are 2 K + 1 vectors, for distances -K .. K, got {len(vectors)}'
        )
    return len(vectors) // 2


@register(
    'shaw',
    kind='encoding',
    card=Card(
        name='relative position representations',
        example='shaw(max_distance=5)',
        use_when=(
            'You want the first relative positions of a transformer, on keys and on '
            'values, as a baseline.'
        ),
        share='layer',
        relative=True,
        needs_training=True,
    ),
)
class Shaw(Encoding):
    """Adds trained vectors of the clipped distance to keys and values; acts on logits and output.

    `logit_ij = q_i . (k_j + aK[c]) / sqrt(H)`, `out_i = sum_j p_ij (v_j + aV[c])`, `c = clip(j - i,
    -K, K)`. Differs from the paper: nothing. No [T, S, H] array is formed: q aK^T is computed once
    per query, and weights are summed per c before they are multiplied by aV. In a chain the queries
    are those that the earlier parts leave.

    Args:
      max_distance: K; farther keys share one vector per side.
      value_term: False leaves aV out, as many implementations do.
      std: standard deviation of the initial vectors.
      head_dim: H, from the model.

    Reference: Shaw, Uszkoreit, Vaswani, arXiv 1803.02155.
    """

    traits = frozenset({'reads_unrotated'})

    def __init__(
        self,
        max_distance: Count = 16,
        value_term: bool = True,
        std: NonNegative = 0.02,
        head_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        vectors = lambda: drawn_normal(rngs, (2 * max_distance + 1, head_dim), std, (None, None))
        self.max_distance = max_distance
        self.keys = vectors()
        self.values = vectors() if value_term else None

    def project(self, q, k, v, tq, tk, x=None):
        return q, k, v, tq.with_feats(shaw=shaw_terms(q, self.keys[...])), tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        index = shaw_index(tq.pos, tk.pos, self.max_distance)
        return s + take_by_index(heads_first(tq.feats['shaw']), index), carry

    def uniform(self, tq, tk):
        return all_beyond(tq, tk, self.max_distance, self.max_distance)

    def collect(self, w, v, tq, tk):
        return weighted_sum(w, v) + shaw_values(w, self.values[...], tq.pos, tk.pos)


class ShawOfKeys(Shaw, where=lambda given: not given['value_term']):
    """Shaw's vectors without those of values."""

    collect, uniform = Encoding.collect, Shaw.uniform
