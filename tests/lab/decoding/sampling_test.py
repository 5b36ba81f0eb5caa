"""Sampling draws from the distribution it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.lab.decoding.sampling import keep_top_k, keep_top_p, sample

P = np.array([0.4, 0.3, 0.2, 0.1])
DRAWS = 20_000


def frequencies(**options):
    options = {'temperature': 1.0, 'top_k': None, 'top_p': None, **options}
    logits = jnp.broadcast_to(jnp.log(P), (DRAWS, 4))
    return np.bincount(sample(logits, jax.random.key(0), **options), minlength=4) / DRAWS


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'options, expected',
    [
        ({}, P),
        ({'temperature': 0.5}, P**2 / (P**2).sum()),
        ({'top_k': 2}, [4 / 7, 3 / 7, 0, 0]),
        ({'top_p': 0.65}, [4 / 7, 3 / 7, 0, 0]),
        ({'top_p': 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({'top_k': 3, 'top_p': 0.7}, [4 / 7, 3 / 7, 0, 0]),  # after top_k the first two weigh 7/9
        ({'top_p': 1.0, 'top_k': 4}, P),
        ({'top_p': 1e-6}, [1, 0, 0, 0]),
    ],
)
def test_frequencies(options, expected):
    np.testing.assert_allclose(frequencies(**options), expected, atol=4 * np.sqrt(0.25 / DRAWS))


def test_temperature_zero_is_the_most_probable_and_needs_no_key():
    assert sample(jnp.log(P)[None], None, temperature=0.0, top_k=None, top_p=None).tolist() == [0]


def test_filters_work_row_by_row():
    logits = jnp.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    assert jnp.isfinite(keep_top_k(logits, 1)).tolist() == [
        [False, False, True],
        [True, False, False],
    ]
    assert jnp.isfinite(keep_top_p(logits, 0.5)).tolist() == [
        [False, False, True],
        [True, False, False],
    ]


def test_tokens_that_reach_p_exactly_are_enough():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.25]))
    assert jnp.isfinite(keep_top_p(logits, 0.5)).tolist() == [True, False, False]
