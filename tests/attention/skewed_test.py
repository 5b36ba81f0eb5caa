"""Products with vectors of the distance against all products of pairs, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.attention.skewed import key_products, query_products, skewed

B, N, H = 2, 3, 4


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


@pytest.mark.parametrize('queries, keys', [(1, 6), (6, 1), (5, 7), (32, 12), (48, 40)])
def test_every_pair_meets_the_vector_of_its_distance(queries, keys):
    rows = draw(0, queries + keys - 1, N, H)
    of_pairs = rows[np.arange(queries)[:, None] - np.arange(keys) + keys - 1]  # [T, S, N, H]
    cases = (
        (query_products, draw(1, B, N, queries, H), 'bnth,tsnh->bnts'),
        (key_products, draw(2, B, N, keys, H), 'bnsh,tsnh->bnts'),
    )
    weights = draw(3, B, N, queries, keys)
    for products, x, axes in cases:
        found, pull = jax.vjp(products, x, rows)
        np.testing.assert_allclose(found, np.einsum(axes, x, of_pairs), atol=1e-5)
        expected = jax.vjp(
            lambda x, rows: jnp.einsum(
                axes, x, rows[np.arange(queries)[:, None] - np.arange(keys) + keys - 1]
            ),
            *(x, rows),
        )[1](weights)
        for ours, theirs in zip(pull(weights), expected):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_gradient_of_skewing_puts_numbers_back():
    a, weights = draw(0, 2, 5, 9), draw(1, 2, 5, 4)
    back = jax.grad(lambda a: (skewed(a, 4) * weights).sum())(a)
    for row in range(5):
        first = 4 - row
        np.testing.assert_array_equal(back[:, row, first : first + 4], weights[:, row])
    assert (back != 0).sum() == weights.size
