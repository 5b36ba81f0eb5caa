"""NoPE: a causal head counts by averaging; without a mask order does not exist."""

import jax
import jax.numpy as jnp
import pytest

import posenc_jax as pj
from tests.golden_files import golden_suite


def mean_of_the_first(values):
    """A causal head of equal logits reads the inverse position."""
    length = len(values['reads'])
    zero, tok = jnp.zeros((1, length, 1, 1)), pj.Tokens.of(length=length)
    first = zero.at[0, 0].set(1.0)
    return pj.attend(pj.make('nope()', causal=True), zero, zero, first, tok, tok).ravel()


test_golden = golden_suite('nope', {'reads': mean_of_the_first}, atol=1e-6)


@pytest.mark.full
def test_without_a_causal_mask_a_permutation_of_the_tokens_permutes_the_result():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 7, 2, 4)) for i in range(3))
    order, tok = jnp.array([3, 0, 6, 1, 5, 2, 4]), pj.Tokens.of(length=7)
    for causal in (False, True):
        run = lambda *a: pj.attend(pj.make('nope()', causal=causal), *a, tok, tok)
        difference = jnp.abs(run(*(a[:, order] for a in (q, k, v))) - run(q, k, v)[:, order]).max()
        assert (difference < 1e-5) == (not causal), difference
