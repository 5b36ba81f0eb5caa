"""Look-ups and sums by bucket against products with one-hot arrays, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.attention.buckets import by_product, by_scatter, sum_by_bucket, take_bucket

B, N, T, S, C = 2, 6, 5, 7, 4
OWNERS = {'query': ('bntc', T), 'key': ('bnsc', S), 'all': ('bnc', 1)}


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


@pytest.mark.full_but_one
@pytest.mark.parametrize('owner', OWNERS)
@pytest.mark.parametrize('rows', [1, B])
def test_taking_and_summing_are_transposes(owner, rows):
    axes, owners = OWNERS[owner]
    index = jnp.asarray(np.random.default_rng(rows).integers(0, C, (rows, T, S)))
    one_hot = np.broadcast_to(np.eye(C)[index], (B, T, S, C))
    t, w = draw(0, B, N, owners, C), draw(1, B, N, T, S)
    numbers = t[:, :, 0] if owner == 'all' else t
    taken = np.einsum(f'{axes},btsc->bnts', numbers, one_hot)
    summed = np.einsum(f'bnts,btsc->{axes}', w, one_hot).reshape(t.shape)
    np.testing.assert_allclose(take_bucket(t, index, owner), taken, atol=1e-6)
    for found in (
        sum_by_bucket(w, index, C, owner),
        by_scatter(jnp.asarray(w), index, C, owner),
        by_product(jnp.asarray(w), index, C, owner),
        jax.grad(lambda t: (take_bucket(t, index, owner) * w).sum())(t),
    ):
        np.testing.assert_allclose(found, summed, atol=1e-5)
    pulled = jax.grad(lambda w: (sum_by_bucket(w, index, C, owner) * t).sum())(w)
    np.testing.assert_allclose(pulled, taken, atol=1e-6)


def test_numbers_that_the_batch_shares_get_the_sum_of_its_gradients():
    index = jnp.asarray(np.random.default_rng(3).integers(0, C, (B, T, S)))
    t, w = draw(0, 1, N, 1, C), draw(1, B, N, T, S)
    found = jax.grad(lambda t: (take_bucket(t, index, 'all') * w).sum())(t)
    expected = np.einsum('bnts,btsc->nc', w, np.eye(C)[index])
    np.testing.assert_allclose(found[0, :, 0], expected, atol=1e-5)
