"""Correlations: Pearson's from sums that are merged piece by piece, and Spearman's of ranks."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


class Moments(NamedTuple):
    """Count, means, and sums of centred products of pairs (c, s); their Pearson correlation follows
    from these.
    """

    count: Array
    mean_c: Array
    mean_s: Array
    cc: Array
    ss: Array
    cs: Array


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of pairs taken together. Centred sums keep their precision in
    float32, where differences of plain sums of squares would cancel.

    Example:
      >>> one = lambda c, s: Moments(*(jnp.array(v) for v in (1.0, c, s, 0.0, 0.0, 0.0)))
      >>> both = merge_moments(one(1.0, 2.0), one(3.0, 6.0))
      >>> [float(v) for v in both]
      [2.0, 2.0, 4.0, 2.0, 8.0, 4.0]
    """
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1)
    weight = a.count * share
    d_c, d_s = b.mean_c - a.mean_c, b.mean_s - a.mean_s
    return Moments(
        count,
        a.mean_c + d_c * share,
        a.mean_s + d_s * share,
        a.cc + b.cc + d_c**2 * weight,
        a.ss + b.ss + d_s**2 * weight,
        a.cs + b.cs + d_c * d_s * weight,
    )


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two arrays of equal size, ties at their mean rank; 0 where one is
    constant.
    """
    from scipy import stats

    x, y = (stats.rankdata(values) - (np.size(values) + 1) / 2 for values in (a, b))
    size = math.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size else 0.0
