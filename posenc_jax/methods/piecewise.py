"""Rotary logits whose relative position is a different function of i and j in different regions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.base.products import scaled_dot_product


def piecewise_logits(
    region: Int[Array, '#B T S'],
    queries: tuple[Float[Array, 'B N T H'], ...],
    keys: tuple[Float[Array, 'B K S H'], ...],
    seen: Bool[Array, '#B #N T S'],
) -> Float[Array, 'B N T S']:
    """Scaled products of queries and keys, where a pair of region r uses the r-th array of each.
    If all visible pairs are of one region, only one product is computed.

    Args:
      region: region of every pair, 0 .. len(queries) - 1.
      queries: the queries as rotated for each region.
      keys: the keys as rotated for each region; a single array serves all regions.
      seen: the visible pairs; the results of the others are arbitrary.
    """
    region, last = region[:, None], len(queries) - 1
    lowest, highest = jnp.where(seen, region, last).min(), jnp.where(seen, region, 0).max()

    def one(queries, keys):
        choose = lambda cases: cases[0] if len(cases) == 1 else jax.lax.select_n(lowest, *cases)
        return scaled_dot_product(choose(queries), choose(keys))

    def several(queries, keys):
        keys = keys * len(queries) if len(keys) == 1 else keys
        logits = [scaled_dot_product(q, k) for q, k in zip(queries, keys, strict=True)]
        return jax.lax.select_n(jnp.broadcast_to(region, logits[0].shape), *logits)

    return jax.lax.cond(lowest >= highest, one, several, queries, keys)
