"""Look-ups and sums by a bucket for each pair of a query and a key, and their gradients."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from posenc_jax.attention.kernels.look_up import look_up
from posenc_jax.attention.kernels.operations import loop, pick, put
from posenc_jax.attention.kernels.program import in_kernel, loads_entries
from posenc_jax.base.derivatives import own_gradient

# Up to this distance a kernel of a GPU looks the bucket up in a table of all distances.
_MOST_DISTANCES = 8192

Owner = Literal['query', 'key', 'all']


def bucket_of(
    distance: Num[Array, '#B T S'], starts: Sequence[int] | np.ndarray
) -> Int[Array, '#B T S']:
    """How many of the ascending `starts` each distance has reached.

    Example:
      >>> bucket_of(jnp.array([[[0, 3, 7]]]), [1, 2, 4]).tolist()
      [[[0, 2, 3]]]
    """
    known = jnp.asarray(starts, distance.dtype)
    if loads_entries() and len(starts) and starts[-1] <= _MOST_DISTANCES:
        # Starts are whole numbers, so what a distance has reached is known by its whole part.
        reached = np.searchsorted(starts, np.arange(starts[-1] + 1), side='right')
        whole = jnp.floor(distance) if jnp.issubdtype(distance.dtype, jnp.floating) else distance
        place = jnp.clip(whole, 0, int(starts[-1])).astype(jnp.int32)
        return look_up(jnp.asarray(reached, jnp.int32)[None, None, None], place, 'all')[:, 0]

    # A kernel does not hold the comparisons of all pairs with all starts, but it does hold those of
    # the one distance of a uniform tile.
    if not in_kernel() or distance.size == 1:
        return (distance[..., None] >= known).sum(-1, dtype=jnp.int32)

    def step(n, reached):
        return reached + (distance >= pick(known[None, None], 2, n)[..., None]).astype(jnp.int32)

    return loop(len(starts), step, jnp.zeros(distance.shape, jnp.int32))


@partial(own_gradient, nondiff_argnums=(2,))
def take_bucket(
    t: Float[Array, '#B N X C'], index: Int[Array, '#B #T #S'], owner: Owner = 'query'
) -> Float[Array, '#B N T S']:
    """`t[x, index]` of every pair, x its query, its key, or 0; the transpose of `sum_by_bucket`.

    Args:
      t: C numbers for each owner: X = T for queries, S for keys, and 1 for 'all'.
      index: the bucket of every pair, 0 .. C - 1; in a uniform tile of a kernel [1, 1, 1], and then
        the result has one number for each owner.
      owner: whose numbers a pair takes.

    Example:
      >>> take_bucket(jnp.array([[[[5.0, 7.0]]]]), jnp.array([[[1, 0, 1]]])).tolist()
      [[[[7.0, 5.0, 7.0]]]]
    """
    if in_kernel():
        return look_up(t, index, owner)
    batch, heads = max(len(t), len(index)), t.shape[1]
    t = jnp.broadcast_to(t, (batch, *t.shape[1:]))
    if owner == 'query':
        every = jnp.broadcast_to(index[:, None], (*t.shape[:3], index.shape[2]))
        return jnp.take_along_axis(t, every, axis=3, mode='promise_in_bounds')
    place = _place(index, owner, t.shape[3])
    every = jnp.broadcast_to(place.reshape(len(index), 1, -1), (batch, heads, place[0].size))
    t = t.reshape(batch, heads, -1)
    found = jnp.take_along_axis(t, every, axis=2, mode='promise_in_bounds')
    return found.reshape(batch, heads, *place.shape[1:])


@partial(own_gradient, nondiff_argnums=(2, 3))
def sum_by_bucket(
    w: Float[Array, 'B N T S'], index: Int[Array, '#B #T #S'], buckets: int, owner: Owner = 'query'
) -> Float[Array, 'B N X C']:
    """Sums of numbers over the pairs of the same owner in the same bucket, float32.

    Args:
      w: one number for each pair.
      index: the bucket of every pair, 0 .. C - 1.
      buckets: C.
      owner: as for `take_bucket`.

    Example:
      >>> sum_by_bucket(jnp.array([[[[1.0, 2.0, 4.0]]]]), jnp.array([[[1, 0, 1]]]), 2).tolist()
      [[[[2.0, 5.0]]]]
    """
    if in_kernel():
        return _sums_by_comparison(w, index, buckets, owner)
    # On CPU a scatter adds one vector, of all heads, for each pair. Elsewhere a product with a
    # one-hot matrix is faster than additions that wait for each other.
    options = dict(buckets=buckets, owner=owner)
    return jax.lax.platform_dependent(
        w, index, cpu=partial(by_scatter, **options), default=partial(by_product, **options)
    )


@own_gradient
def take_row(table: Float[Array, 'C H'], index: Int[Array, '1 1 1']) -> Float[Array, '1 1 1 H']:
    """The row of a table that a uniform tile of a kernel looks up."""
    return look_up(table[None, None], index, 'row')


def by_scatter(
    w: Float[Array, 'B N T S'], index: Int[Array, '#B #T #S'], buckets: int, owner: Owner = 'query'
) -> Float[Array, 'B N X C']:
    """`sum_by_bucket` by scattered additions."""
    batch, heads = w.shape[:2]
    owners = {'query': w.shape[2], 'key': w.shape[3], 'all': 1}[owner]
    place = _place(index, owner, buckets).reshape(len(index), -1)
    # More heads at a time would be slower: their rows are apart by a power of two, and the cache
    # holds few such places.
    group = max(n for n in range(1, 9) if heads % n == 0)
    vectors = w.astype(jnp.float32).reshape(batch, heads // group, group, place.shape[1])

    def add(vectors, place):
        sums = jnp.zeros((owners * buckets, group), jnp.float32)
        return sums.at[place].add(vectors.T, mode='promise_in_bounds').T

    of_row = lambda vectors, place: jax.lax.map(lambda v: add(v, place), vectors)
    if len(index) == 1:  # positions that the batch shares
        sums = of_row(vectors.reshape(-1, group, place.shape[1]), place[0])
    else:
        sums = jax.lax.map(lambda row: of_row(*row), (vectors, place))
    return sums.reshape(batch, heads, owners, buckets)


def by_product(
    w: Float[Array, 'B N T S'], index: Int[Array, '#B #T #S'], buckets: int, owner: Owner = 'query'
) -> Float[Array, 'B N X C']:
    """`sum_by_bucket` by a product with a one-hot matrix."""
    chosen = jax.nn.one_hot(index, buckets)
    rows, kept = ('' if len(index) == 1 else 'b'), {'query': 't', 'key': 's', 'all': ''}[owner]
    chosen = chosen if rows else chosen[0]
    sums = jnp.einsum(f'bnts,{rows}tsc->bn{kept}c', w, chosen, precision=jax.lax.Precision.HIGHEST)
    return sums if kept else sums[:, :, None]


def _sums_by_comparison(w, index, buckets: int, owner: Owner):
    """`sum_by_bucket` without a scatter."""
    axes = {'query': (3,), 'key': (2,), 'all': (2, 3)}[owner]
    w, index = w.astype(jnp.float32), index[:, None]
    owners = {'query': w.shape[2], 'key': w.shape[3], 'all': 1}[owner]
    sums = jnp.zeros((*w.shape[:2], owners, buckets), jnp.float32)
    put_sum = lambda w, n, sums: put(w.sum(axes).reshape(sums.shape[:3]), 3, n, sums)
    if index.shape[2:] == (1, 1):
        return put_sum(w, index, sums)
    return loop(buckets, lambda n, sums: put_sum(jnp.where(index == n, w, 0.0), n, sums), sums)


def _place(index: Array, owner: Owner, buckets: int) -> Array:
    """The places of the pairs in the numbers of all owners, laid out one after the other."""
    axis = {'query': 1, 'key': 2, 'all': None}[owner]
    if axis is None:
        return index
    return jax.lax.broadcasted_iota(index.dtype, index.shape, axis) * buckets + index


def _take_bwd(owner, kept, g):
    index, like = kept
    if g.shape[0] < len(index):
        g = jnp.broadcast_to(g, (len(index), *g.shape[1:]))
    sums = sum_by_bucket(g, index, like.shape[1], owner)
    return sums.sum(0, keepdims=True) if like.shape[0] < len(sums) else sums, None


take_row.defvjp(
    lambda table, index: (take_row(table, index), (index, jnp.zeros((len(table), 0)))),
    lambda kept, g: (put(g[0, 0, 0], 0, kept[0][0], jnp.zeros((len(kept[1]), g.shape[3]))), None),
)
take_bucket.defvjp(
    lambda t, index, owner: (
        take_bucket(t, index, owner),
        (index, jnp.zeros((len(t), t.shape[3], 0))),
    ),
    _take_bwd,
)
sum_by_bucket.defvjp(
    lambda w, index, buckets, owner: (
        sum_by_bucket(w, index, buckets, owner),
        (index, jnp.zeros((*w.shape, 0))),
    ),
    lambda buckets, owner, kept, g: (
        jnp.broadcast_to(take_bucket(g, kept[0], owner), kept[1].shape[:-1]),
        None,
    ),
)
