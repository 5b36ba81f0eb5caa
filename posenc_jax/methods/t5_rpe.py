"""T5's relative position buckets: one trained bias per head and bucket of distance."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from posenc_jax.attention.buckets import bucket_of, sum_by_bucket, take_bucket
from posenc_jax.attention.kernels.program import in_kernel
from posenc_jax.base.derivatives import own_gradient
from posenc_jax.base.meshes import vary, varying_axes
from posenc_jax.protocol.bounds import CONTEXT, NonNegative
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.errors import check_number
from posenc_jax.protocol.families import Bias, all_beyond, signed_distance
from posenc_jax.protocol.registry import Card, register

_MOST_BUCKETS = 1024  # per direction


def t5_rpe_thresholds(buckets: int, max_distance: int) -> np.ndarray:
    """The smallest distance of each bucket except the first, int64 [buckets - 1].

    It uses exact integer arithmetic. With e = buckets // 2, bucket b starts at b up to e, then at
    the smallest `n >= e (max_distance / e)^((b-e)/(buckets-e))`.

    Raises:
      ValueError: fewer than two buckets, more than 1024 (every distance is compared with all of
        them), or no distance left for the logarithmic half.
    """
    exact = buckets // 2
    if buckets < 2:
        raise ValueError(f'buckets must be at least 2 per direction, got {buckets}')
    check_number('buckets per direction', buckets, most=_MOST_BUCKETS)
    if max_distance <= exact:
        raise ValueError(
            f'max_distance must exceed the {exact} exact distances of {buckets} buckets, got '
            f'{max_distance}'
        )
    steps = buckets - exact
    starts = list(range(1, exact + 1))
    for step in range(1, steps):
        at_most = int(exact * (max_distance / exact) ** (step / steps)) - 1
        n = max(starts[-1], at_most)
        while n**steps < exact ** (steps - step) * max_distance**step:
            n += 1
        starts.append(n)
    return np.array(starts, np.int64)


def t5_rpe_bucket(
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
    *,
    buckets: int = 32,
    max_distance: int = 128,
    bidirectional: bool = False,
) -> Int[Array, '#B T S']:
    """The bucket of each pair of a query and a key.

    With `bidirectional` each direction has half of the buckets; otherwise later keys fall in
    bucket 0.
    """
    distance = signed_distance(q_pos, k_pos)
    first = 0
    if bidirectional:
        buckets //= 2
        first = jnp.where(distance < 0, buckets, 0)
        distance = jnp.abs(distance)
    return first + bucket_of(distance, t5_rpe_thresholds(buckets, max_distance))


def t5_rpe_bias(
    table: Float[Array, 'buckets N'],
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
    *,
    max_distance: int = 128,
    bidirectional: bool = False,
) -> Float[Array, '#B N T S']:
    """`table[bucket, head]`, float32.

    Example:
      >>> t5_rpe_bias(
      ...     jnp.arange(8.0)[:, None], jnp.array([[9]]), jnp.array([[9, 6, 0]]), max_distance=16
      ... ).tolist()
      [[[[0.0, 3.0, 6.0]]]]
    """
    bucket = t5_rpe_bucket(
        q_pos, k_pos, buckets=table.shape[0], max_distance=max_distance, bidirectional=bidirectional
    )
    return look_up(table.astype(jnp.float32), bucket)


@own_gradient
def look_up(table: Float[Array, 'rows N'], index: Int[Array, '#B T S']) -> Float[Array, '#B N T S']:
    """`table[index, head]`, heads first."""
    if in_kernel():
        return take_bucket(table.T[None, :, None], index, 'all')
    # On CPU one gather per head, from indices that are computed first, is several times as fast as
    # one gather for all heads.
    index = jax.lax.optimization_barrier(index)
    return jnp.stack([table[:, head][index] for head in range(table.shape[1])], axis=1)


def _look_up_bwd(saved, g):
    rows, index = saved
    if in_kernel():
        return sum_by_bucket(g, index, rows, 'all').sum((0, 2)).T, None
    index, heads = index.reshape(-1), jnp.swapaxes(g, 0, 1).reshape(g.shape[1], -1)
    if rows > _ONE_HOT_ROWS:
        return jnp.zeros((rows, heads.shape[0]), g.dtype).at[index].add(heads.T), None
    # Behind the row of the query itself in a table of both directions.
    cut = min(rows, rows // 2 + 2)

    def product(first, last):
        one_hot = (index == jnp.arange(first, last)[:, None]).astype(g.dtype)
        return jnp.einsum('xi,ni->xn', one_hot, heads, precision='highest')

    # Half of such a table is for keys that a causal mask hides, and most tiles have no such key.
    ahead = jax.lax.cond(
        jnp.any(index >= cut),
        lambda: product(cut, rows),
        lambda: vary(jnp.zeros((rows - cut, len(heads)), g.dtype), varying_axes(heads)),
    )
    return jnp.concatenate([product(0, cut), ahead]), None


# Up to this many rows the gradient of the table is a product with a one-hot matrix, since on CPU a
# scatter loops over the pairs. For more rows that matrix, `rows` numbers per pair, is too large.
_ONE_HOT_ROWS = 128
look_up.defvjp(lambda table, index: (look_up(table, index), (table.shape[0], index)), _look_up_bwd)


@register(
    't5_rpe',
    kind='encoding',
    card=Card(
        name='T5 relative bias',
        example='t5_rpe(buckets=8, max_distance=20)',
        use_when=(
            'You load a model such as T5, or want a learned bias of the distance that '
            'other libraries read.'
        ),
        share='model',
        relative=True,
        needs_training=True,
    ),
)
class T5RPE(Bias):
    """Adds a trained bias per head and bucket of distance; acts on the logits.

    `logit_ij = q_i . k_j / sqrt(H) + W[bucket(i - j), h]`, `bucket(n) = n if n < e, else
    min(buckets - 1, e + floor(ln(n/e) / ln(max_distance/e) (buckets - e)))`, e = buckets / 2.
    Differs from T5: logits stay divided by sqrt(H) unless `scaled=False`; the initial table is N(0,
    std^2) with 0.02 instead of D^-0.5.

    Args:
      buckets: rows of the table; even where `bidirectional`.
      max_distance: distances from about here on share the last bucket.
      bidirectional: halves the buckets between earlier and later keys, as encoders need; otherwise
        later keys fall in bucket 0.
      std: standard deviation of the initial table.
      scaled: False removes the factor 1 / sqrt(H) from the logits of the earlier parts, as in T5.
      heads, head_dim: N, H, from the model.

    Raises:
      ValueError: too few, too many or (bidirectional) an odd number of buckets, max_distance
        within the exact ones.

    Reference: Raffel et al., arXiv 1910.10683.
    """

    def __init__(
        self,
        buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = False,
        std: NonNegative = 0.02,
        scaled: bool = True,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if bidirectional and buckets % 2:
            raise ValueError(
                f't5_rpe(bidirectional=True) needs an even number of buckets, got {buckets}'
            )
        t5_rpe_thresholds(buckets // 2 if bidirectional else buckets, max_distance)  # checks both
        self.max_distance, self.bidirectional = max_distance, bidirectional
        self.scale = 1.0 if scaled else head_dim**0.5
        self.table = drawn_normal(rngs, (buckets, heads), std, (None, 'heads'))

    def uniform(self, tq, tk):
        buckets = self.table.shape[0] // (2 if self.bidirectional else 1)
        last = int(t5_rpe_thresholds(buckets, self.max_distance)[-1])
        return all_beyond(tq, tk, last, last if self.bidirectional else 0)

    def bias(self, q_pos, k_pos):
        return t5_rpe_bias(
            self.table[...],
            q_pos,
            k_pos,
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )

    def logits(self, s, q, k, tq, tk, seen, carry):
        return super().logits(s * self.scale, q, k, tq, tk, seen, carry)
