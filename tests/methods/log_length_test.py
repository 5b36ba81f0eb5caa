"""Factors with the logarithm of the rank: the published numbers, where they act, and refusals."""

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.log_length import (
    log_length_llama4_factor,
    log_length_logn_factor,
    log_length_queries,
)
from tests.golden_files import golden_suite

SIZES = dict(heads=2, head_dim=4, train_len=4)


def logn(_, rank):
    return log_length_logn_factor(jnp.array(int(rank) + 1), 4096)


def llama4(_, rank):
    return log_length_llama4_factor(jnp.array(int(rank) + 1))


test_golden = golden_suite('log_length', {'logn.*': logn, 'llama4.*': llama4}, rtol=1e-7)


def test_it_is_exactly_one_up_to_the_trained_length():
    count = jnp.arange(1, 4097)
    assert (log_length_logn_factor(count, 4096) == 1.0).all() and log_length_logn_factor(
        jnp.array(4097), 4096
    ) > 1.0
    assert (log_length_llama4_factor(count, step=4097) == 1.0).all()
    assert log_length_llama4_factor(jnp.array(4097), step=4097) > 1.0
    assert (log_length_llama4_factor(count, slope=0.0, step=8) == 1.0).all()


@pytest.mark.parametrize('spec, by_hand', [
    ('log_length()', lambda n: max(1.0, np.log(n) / np.log(4.0))),
    ('log_length("llama4", slope=0.5, step=3)', lambda n: 1 + 0.5 * np.log(1 + n // 3)),
])  # fmt: skip
def test_the_rank_in_the_document_decides_and_never_the_position(spec, by_hand):
    segment, valid = np.repeat([[0, 1]], 12, axis=1), np.arange(24)[None] != 3
    tok = pj.Tokens.of(segment=segment, valid=valid, positions=np.arange(24)[None] + 90)
    q = jnp.ones((1, 24, 2, 4))
    scaled, k, v, _, _ = pj.make(spec, **SIZES).project(q, q, q, tok, tok)
    ranks = [*range(3), 2, *range(3, 11), *range(12)]
    np.testing.assert_allclose(scaled[0, :, 1, 2], [by_hand(i + 1) for i in ranks], rtol=1e-6)
    assert k is q and v is q


def test_factors_are_formed_in_float32():
    """In bfloat16 the factor is 1.0, and 3.0117 lies nearest to 3.0156."""
    found = log_length_queries(jnp.full((1, 1, 1, 2), 3.0, jnp.bfloat16), jnp.array([[1.0039]]))
    assert found.dtype == jnp.bfloat16 and (found == jnp.bfloat16(3.015625)).all()
