"""Universal relative position encoding: trained biases before the softmax, factors after it."""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int, Num

from posenc_jax.attention.buckets import bucket_of
from posenc_jax.base.products import over_batch, weighted_sum
from posenc_jax.methods.t5_rpe import look_up, t5_rpe_thresholds
from posenc_jax.protocol.bounds import CONTEXT, Count, NonNegative
from posenc_jax.protocol.encoding import Encoding, drawn_normal
from posenc_jax.protocol.families import all_beyond, signed_distance, whole_distance
from posenc_jax.protocol.registry import Card, register

Table = Literal['bucketed', 'toeplitz']


def urpe_bucket(
    q_pos: Num[Array, '#B T'],
    k_pos: Num[Array, '#B S'],
    *,
    buckets: int = 32,
    max_distance: int = 128,
) -> Int[Array, '#B T S']:
    """The row of every pair in the table of the released code, which has 2 `buckets` + 1 rows.

    With e the T5 bucket of |j - i| among `buckets` (see `t5_rpe_bucket`), it is `buckets + 1 + e`
    for keys j >= i and `buckets - 1 - e` for keys j < i. So rows `buckets - 1` and `buckets` are
    not used, and keys i and i - 1 are three rows apart.
    """
    distance = signed_distance(q_pos, k_pos)
    bucket = bucket_of(jnp.abs(distance), t5_rpe_thresholds(buckets, max_distance))
    return jnp.where(distance <= 0, buckets + 1 + bucket, buckets - 1 - bucket)


def urpe_diagonal(
    q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S'], max_len: int
) -> Int[Array, '#B T S']:
    """The row of every pair in a Toeplitz table: `clip(j - i, 1 - n, n - 1) + n - 1`; n is max_len.

    Raises:
      ValueError: positions that are not integers.
    """
    distance = whole_distance("urpe(table='toeplitz')", q_pos, k_pos, "; use table='bucketed'")
    return jnp.clip(-distance, 1 - max_len, max_len - 1).astype(jnp.int32) + max_len - 1


@register(
    'urpe',
    kind='encoding',
    card=Card(
        name='URPE',
        example='urpe(max_distance=40)',
        use_when=(
            'You want a relative bias, and tokens have to tell their place even if all are equal.'
        ),
        share='model',
        relative=True,
        needs_training=True,
    ),
)
class URPE(Encoding):
    """Adds a trained bias of the distance to the logits, and multiplies the probabilities by a
    trained factor of the distance.

    `out_i = sum_j softmax_j(q_i . k_j / sqrt(H) + b_(j-i)) C_(j-i) v_j`, with b and C of each head.
    The products are not normalised again, so the weights of a row need not sum to one. This lets
    the model tell positions apart even if all tokens are equal. C is initialised to ones. Differs
    from the paper: nothing; 'bucketed' is the table of the official code, 'toeplitz' that of the
    paper. Distances beyond `max_len` use the last entries of a 'toeplitz' table.

    Args:
      table: 'bucketed', an entry for each T5 bucket of the distance in either direction (see
        `urpe_bucket` for the numbering); 'toeplitz', an entry for each distance.
      buckets: buckets per direction, of 'bucketed'.
      max_distance: distances from about this one on share the last bucket, of 'bucketed'.
      max_len: n of 'toeplitz', in positions; 0 is the trained length.
      std: standard deviation of the initial biases.
      heads, train_len: N, and the trained length in tokens, from the model.

    Raises:
      ValueError: too few buckets, a max_distance within the exact distances, arguments of the
        other table; at call, queries with another number of heads, or fractional positions with
        'toeplitz'.

    Reference: Luo et al., arXiv 2205.13401.

    Example:
      >>> import posenc_jax as pj
      >>> encoding = pj.make('urpe()', heads=4, train_len=64)
      >>> encoding.biases.shape, float(encoding.factors[...].min())
      ((65, 4), 1.0)
    """

    def __init__(
        self,
        table: Table = 'bucketed',
        buckets: int = 32,
        max_distance: int = 128,
        max_len: Count = 0,
        std: NonNegative = 0.02,
        heads: int = CONTEXT,
        train_len: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        t5_rpe_thresholds(buckets, max_distance)  # checks both
        if table == 'bucketed' and max_len:
            raise ValueError(
                f"urpe max_len={max_len} is an argument of table='toeplitz'; table='bucketed' has "
                'buckets and max_distance'
            )
        if table == 'toeplitz' and (buckets, max_distance) != (32, 128):
            raise ValueError(
                f'urpe buckets={buckets}, max_distance={max_distance} are arguments of '
                "table='bucketed'; table='toeplitz' has max_len"
            )
        self.table, self.buckets, self.max_distance = table, buckets, max_distance
        self.max_len = max_len or train_len
        rows = 2 * buckets + 1 if table == 'bucketed' else 2 * self.max_len - 1
        self.biases = drawn_normal(rngs, (rows, heads), std, (None, 'heads'))
        self.factors = nnx.Param(jnp.ones((rows, heads), jnp.float32), axes=(None, 'heads'))

    def index(self, q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S']) -> Int[Array, '#B T S']:
        """The row of both tables for each pair."""
        if self.table == 'toeplitz':
            return urpe_diagonal(q_pos, k_pos, self.max_len)
        return urpe_bucket(q_pos, k_pos, buckets=self.buckets, max_distance=self.max_distance)

    def uniform(self, tq, tk):
        bucketed = self.table == 'bucketed'
        starts = t5_rpe_thresholds(self.buckets, self.max_distance) if bucketed else [self.max_len]
        return all_beyond(tq, tk, int(starts[-1]), int(starts[-1]))

    def _spread(self, table, like, tq, tk):
        """The entries of a table for all pairs, [B, N, T, S]."""
        if table.shape[1] != like.shape[1]:
            raise ValueError(
                f'urpe has tables for {table.shape[1]} heads, the queries have {like.shape[1]}'
            )
        found = look_up(table.astype(jnp.float32), self.index(tq.pos, tk.pos))
        return over_batch(found, like.shape[0])

    def logits(self, s, q, k, tq, tk, seen, carry):
        return s + self._spread(self.biases[...], s, tq, tk), carry

    def collect(self, w, v, tq, tk):
        return weighted_sum(w * self._spread(self.factors[...], w, tq, tk), v)
